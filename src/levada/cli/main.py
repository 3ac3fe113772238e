"""The root of the `levada` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from levada import __version__
from levada.cli import (
    broker,
    cluster,
    dead,
    drill,
    images,
    line,
    maintain,
    processes_line,
    processes_model,
    review,
    send,
    topics,
)
from levada.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Levada turns a Kubernetes namespace into a working data-and-ML line."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


line.register(app)
send.register(app)
app.add_typer(cluster.app, name="cluster", help="The Kubernetes that is built and started on this machine.")
app.add_typer(images.app, name="images", help="The images of the line.")
drill.register(app)
app.add_typer(review.app, name="review", help="Events that a screen set aside.")
app.add_typer(dead.app, name="dead", help="Events that were refused after the collector.")
app.add_typer(topics.app, name="topics", help="Kafka's topics, users and rights.")
app.add_typer(broker.app, name="broker", help="Set-up and readiness of the bundled Kafka's pods.")
processes_line.register(app)
maintain.register(app)
processes_model.register(app)


def main() -> None:
    """Entry point; an error a user can mend is one message, not a traceback."""
    try:
        app()
    except UserError as error:
        sys.exit(f"levada: {error}")
