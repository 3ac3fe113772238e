"""Commands of the pods of the bundled Kafka."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from levada.config import required, settings

app = typer.Typer(no_args_is_help=True)


@app.command()
def prepare(
    node: Annotated[int, typer.Option(help="Number of the node.")],
    host: Annotated[str, typer.Option(help="Name by which the others reach it.")],
    cluster_id: Annotated[str, typer.Option(help="The cluster that the values describe.")],
    shared: Annotated[Path, typer.Option(help="server.properties as all nodes share it.")],
    into: Annotated[Path, typer.Option(help="Folder for this node's own.")],
    rack: Annotated[str, typer.Option(help="Its zone, if it is known.")] = "",
    rack_of: Annotated[list[str] | None, typer.Option(help="A zone that is known better, node=zone.")] = None,
    voter: Annotated[
        list[str] | None, typer.Option(help="Where a voter's metrics are, host:port; the first may begin the quorum.")
    ] = None,
) -> None:
    """Write a node's settings, and how its disk is formatted if it is empty; wait while that cannot be known."""
    from levada.ingest import broker

    # The first process of a container is not stopped by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    zone = dict(pair.split("=", 1) for pair in rack_of or ()).get(str(node), rack)
    broker.prepare(shared, into, broker.Node(node, host, zone, tuple(voter or ())), cluster_id, report=typer.echo)


@app.command()
def watch(
    node: Annotated[int, typer.Option(help="Number of the broker.")],
    bootstrap: Annotated[str, typer.Option(help="Its own address, host:port.")],
) -> None:
    """Answer at /readyz whether a broker has caught up with the others."""
    from levada.ingest import broker

    config = settings()
    kafka = required(config.kafka, "LEVADA_KAFKA__CREDENTIALS")
    broker.watch(config, kafka.model_copy(update={"bootstrap": bootstrap}), node)
