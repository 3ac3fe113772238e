"""Commands about Kafka's topics, users and rights; outside of a pod they run in the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from levada.cli.line import Cluster, Context, Namespace, in_cluster
from levada.config import Settings, required, settings
from levada.pipeline import Pipeline, load_pipelines, parse_pipeline

app = typer.Typer(no_args_is_help=True)

_Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to keep trying.")]
_Users = Annotated[Path, typer.Option(help="Folder with a folder a client: username, password.")]
_USERS = Path("/etc/levada/credentials/kafka-users")
_CHANGES = 2
_START_SECONDS = 60


@app.command()
def plan(
    values: Annotated[
        list[Path] | None,
        typer.Option("--values", "-f", help="Values file whose pipelines are meant; may be repeated."),
    ] = None,
    declared: Annotated[str | None, typer.Option(help="The declarations as JSON instead, {name: declaration}.")] = None,
    users: _Users = _USERS,
    timeout: _Timeout = 60,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Show what `apply` would do. Exit code 0: nothing; 2: changes; 1: something declared that Kafka refuses.

    With values files it is what their pipelines would need, without them what the release declares.
    """
    config = settings()
    if config.kafka is None:
        arguments = ["topics", "plan", f"--timeout={timeout:g}"]
        if values:
            from levada.line.install import check

            pipelines = check(values)
            entries = {
                name: one.model_dump(mode="json", by_alias=True, exclude={"name"}, exclude_unset=True)
                for name, one in pipelines.items()
            }
            arguments.append(f"--declared={json.dumps(entries)}")
        in_cluster(arguments, cluster, context, namespace, timeout=timeout + _START_SECONDS)
    from levada.ingest import topics

    todo = topics.plan(
        required(config.kafka, "LEVADA_KAFKA__BOOTSTRAP"),
        _pipelines(config, declared),
        topics.users_in(users),
        timeout=timeout,
        report=typer.echo,
    )
    for change in todo.changes:
        typer.echo(f"+ {change.what}")
    for line in todo.kept:
        typer.echo(f"  {line}")
    for line in todo.refused:
        typer.echo(f"! {line}")
    typer.echo(
        f"{len(todo.changes)} to change, {len(todo.refused)} refused, {len(todo.kept)} left to you, "
        f"{todo.as_declared} as declared"
    )
    raise typer.Exit(1 if todo.refused else _CHANGES if todo.changes else 0)


@app.command()
def apply(
    users: _Users = _USERS,
    timeout: _Timeout = 300,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Make users, rights and topics as the release declares them; again, it changes nothing."""
    config = settings()
    if config.kafka is None:
        arguments = ["topics", "apply", f"--timeout={timeout:g}"]
        in_cluster(arguments, cluster, context, namespace, timeout=timeout + _START_SECONDS)
    from levada.ingest import topics

    topics.apply(
        required(config.kafka, "LEVADA_KAFKA__BOOTSTRAP"),
        load_pipelines(config.pipelines),
        topics.users_in(users),
        timeout=timeout,
        report=typer.echo,
    )


def _pipelines(config: Settings, declared: str | None) -> dict[str, Pipeline]:
    if declared is None:
        return load_pipelines(config.pipelines)
    return {name: parse_pipeline(entry, name) for name, entry in json.loads(declared).items()}
