"""Commands about events that a screen set aside; outside of a pod they run in the cluster."""

from __future__ import annotations

import getpass
import json
from typing import Annotated, Literal

import typer

from levada.cli.line import Cluster, Context, Namespace, in_cluster
from levada.config import settings
from levada.pipeline import load_pipeline

app = typer.Typer(no_args_is_help=True)

_Pipeline = Annotated[str, typer.Argument(help="Name of the pipeline.")]
_Ids = Annotated[list[str], typer.Argument(help="Event ids, as `levada review list` shows them.")]
_By = Annotated[str | None, typer.Option(help="Who decides; by default the user of this machine.")]
_Note = Annotated[str, typer.Option(help="Why, for the record.")]
_SECONDS = 120.0


@app.command("list")
def list_(
    pipeline: _Pipeline,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were decided.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Show which events were set aside, why, and what became of them. Their values are not shown."""
    config = settings()
    if config.kafka is None:
        arguments = ["review", "list", pipeline, *(["--all"] if all_ else []), *(["--json"] if as_json else [])]
        in_cluster(arguments, cluster, context, namespace, timeout=_SECONDS)
    from levada.ingest.review import Reviews

    held = Reviews(config.kafka, load_pipeline(config.pipelines, pipeline)).held()
    shown = [each for each in held if all_ or each.state in ("waiting", "releasing")]
    for each in shown:
        place = f"{each.partition}/{each.offset}"
        if as_json:
            decisions = [vars(decision) for decision in each.decisions]
            typer.echo(
                json.dumps(
                    {"place": place, "event_id": each.event_id, "since": each.since, "state": each.state,
                     "screens": each.screens.split(","), "reason": each.reason, "decisions": decisions}
                )
            )  # fmt: skip
            continue
        typer.echo(f"{place:<12} {each.event_id:<38} {each.state:<9} {each.since}  {each.screens}: {each.reason}")
        for decision in each.decisions:
            note = f": {decision.note}" if decision.note else ""
            typer.echo(f"{'':<12} {decision.state} by {decision.by} at {decision.at}{note}")
    waiting, cut_off = (sum(each.state == state for each in held) for state in ("waiting", "releasing"))
    if not as_json:
        again = f", {cut_off} of them cut off in their release: release them again" if cut_off else ""
        typer.echo(f"{waiting} waiting, {len(held) - waiting} decided{again}")


@app.command()
def release(
    pipeline: _Pipeline,
    event_ids: _Ids,
    by: _By = None,
    note: _Note = "",
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Send events on into the pipeline, under their own ids; again for those that `list` shows as releasing."""
    _decide("release", pipeline, event_ids, "released", by, note, cluster, context, namespace)


@app.command()
def reject(
    pipeline: _Pipeline,
    event_ids: _Ids,
    by: _By = None,
    note: _Note = "",
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Record that events shall not go on."""
    _decide("reject", pipeline, event_ids, "rejected", by, note, cluster, context, namespace)


def _decide(
    command: str,
    pipeline: str,
    event_ids: list[str],
    state: Literal["released", "rejected"],
    by: str | None,
    note: str,
    cluster: str,
    context: str | None,
    namespace: str,
) -> None:
    config, by = settings(), by or getpass.getuser()
    if config.kafka is None:
        arguments = ["review", command, f"--by={by}", f"--note={note}", "--", pipeline, *event_ids]
        in_cluster(arguments, cluster, context, namespace, timeout=_SECONDS)
    from levada.ingest.review import Reviews

    for each in Reviews(config.kafka, load_pipeline(config.pipelines, pipeline)).decide(
        event_ids, state, by=by, note=note
    ):
        typer.echo(f"{each.event_id}: {state}")
