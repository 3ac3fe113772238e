"""Commands about events that were refused after the collector; outside of a pod they run in the cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from levada.cli.line import Cluster, Context, Namespace, in_cluster
from levada.config import settings
from levada.pipeline import load_stream

app = typer.Typer(no_args_is_help=True)

_Pipeline = Annotated[str, typer.Argument(help="Name of the pipeline, or <pipeline>.predictions.")]
_Rule = Annotated[str | None, typer.Option("--rule", help="Only letters that broke this rule, as `list` shows it.")]
_SECONDS = 600.0


@app.command("list")
def list_(
    pipeline: _Pipeline,
    rule: _Rule = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="The newest this many.")] = 20,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Show the newest dead letters, each event once. Their values are not shown."""
    config = settings()
    if config.kafka is None:
        arguments = ["dead", "list", f"--limit={limit}", *([] if rule is None else [f"--rule={rule}"]), "--", pipeline]
        in_cluster(arguments, cluster, context, namespace, timeout=_SECONDS)
    from levada.stream.letters import Letters, printable

    found, more = Letters(config.kafka, load_stream(config.pipelines, pipeline)).newest(limit, rule)
    for letter in found:
        replayed = "  (replayed)" if letter.replayed else ""
        replayed += "  (of an earlier topic)" if letter.earlier else ""
        typer.echo(
            f"{letter.place:<12} {printable(letter.event_id):<38} {letter.at}  "
            f"{printable(letter.field) or '-'}: {printable(letter.rule)}{replayed}"
        )
    typer.echo(f"{len(found)} shown{', there are older ones: raise --limit' if more else ''}")


@app.command()
def show(
    pipeline: _Pipeline,
    place: Annotated[str, typer.Argument(help="Partition and offset of the event, as `list` shows them: 2/1047.")],
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Show one letter with its raw bytes, which hold whatever the event held: mind where they end up."""
    config = settings()
    if config.kafka is None:
        command = ["dead", "show", "--", pipeline, place]
        # Else they would be in the log of a pod.
        in_cluster(command, cluster, context, namespace, timeout=_SECONDS, logged=False)
    from levada.stream.letters import Letters, printable

    letter = Letters(config.kafka, load_stream(config.pipelines, pipeline)).at(place)
    if letter.earlier:
        typer.echo("(of an earlier topic of that name, deleted since)")
    for name, value in letter.headers:
        typer.echo(f"{printable(name)}: {printable(value)}")
    typer.echo("")
    typer.echo("(a tombstone: no bytes)" if letter.value is None else printable(letter.value))


@app.command()
def replay(
    pipeline: _Pipeline,
    place: Annotated[str | None, typer.Argument(help="One event: partition and offset, 2/1047.")] = None,
    rule: _Rule = None,
    all_: Annotated[bool, typer.Option("--all", help="Every letter that was not replayed yet.")] = False,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Send events to their topic again, once the cause is mended: under their own ids, each once."""
    if sum((place is not None, rule is not None, all_)) != 1:
        raise typer.BadParameter("say which: a place, --rule or --all")
    config = settings()
    if config.kafka is None:
        what = [f"--rule={rule}", "--", pipeline] if rule else ["--all", "--", pipeline] if all_ else []
        command = ["dead", "replay", *(what or ["--", pipeline, str(place)])]
        in_cluster(command, cluster, context, namespace, timeout=_SECONDS)
    from levada.stream.letters import Letters

    count, earlier = Letters(config.kafka, load_stream(config.pipelines, pipeline)).replay(place=place, rule=rule)
    whose = f", {earlier} of them from an earlier topic of that name, deleted since" if earlier else ""
    typer.echo(f"{count} sent to topic {pipeline} again{whose}")
