"""Commands that break a line on purpose and count what came of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated

import typer

from levada.cli.line import Cluster, Context, Namespace
from levada.config import required, settings
from levada.pipeline import load_pipeline


def register(app: typer.Typer) -> None:
    """Put the commands of this group on the root."""
    app.command()(drill)
    app.command(hidden=True)(audit)


def drill(
    pipeline: Annotated[str, typer.Argument(help="A pipeline declared as in examples/drill/values.yaml.")] = "drill",
    events: Annotated[int, typer.Option(min=1, max=100_000_000, help="Numbered events to send.")] = 100_000,
    faults: Annotated[int, typer.Option(min=0, max=10_000, help="Faults to do while they are sent.")] = 20,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="kill, pause, cut, cut-in, cut-out, node, oom, disk or restart; may be repeated; by default kill. "
            "A context given, kill and restart alone."
        ),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Component to break; may be repeated; by default sink, collector and kafka."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides what breaks when; printed if none is given.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="File that every answer is added to; by default drill-<seed>.ndjson.")
    ] = None,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Send numbered events, break the line meanwhile, and count: lost, doubled, out of order.

    Ends with 1 if anything is.
    """
    from levada.line.drill import Drill, Plan
    from levada.line.faults import KINDS
    from levada.line.target import find

    if wrong := [given for given in kind or () if given not in KINDS]:
        raise typer.BadParameter(f"{wrong[0]} is no fault; there are {', '.join(KINDS)}", param_hint="--kind")
    chosen = random.randrange(10**6) if seed is None else seed  # noqa: S311
    plan = Plan(events, faults, tuple(kind or ("kill",)), tuple(on or ("sink", "collector", "kafka")), chosen)
    path = ledger or Path(f"drill-{chosen}.ndjson")
    typer.echo(f"Seed {chosen}: {plan.total} events, {faults} faults; the ledger is {path}")
    target = find(cluster=cluster, context=context, namespace=namespace)
    try:
        result = Drill(target, target.pipeline(pipeline), plan, path, typer.echo).run()
    finally:
        target.close()
    typer.echo("\n" + result.render())
    raise typer.Exit(0 if result.good else 1)


def audit(prefix: str, connections: int = 1, batches: int = 1, lines: int = 1, writers: int = 1) -> None:
    """Count the numbered events of a drill in the lake; run by `levada drill` in a sink's pod."""
    from levada import lake
    from levada.stream.audit import audit as count

    config = settings()
    declared = load_pipeline(config.pipelines, required(config.pipeline, "LEVADA_PIPELINE"))
    found = count(
        lake.catalog(config), declared, prefix, connections=connections, batches=batches, lines=lines, writers=writers
    )
    typer.echo(json.dumps(found.as_json()))
