"""Processes of the model's life: train, promote, serve."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from levada.batch import SKIP_EXIT_CODE

if TYPE_CHECKING:
    from levada.config import Settings
    from levada.pipeline import Pipeline

Run = Annotated[str, typer.Option(help="Id of the DAG run; the same id gives the same version.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command()(promote)
    app.command()(serve)


def train(run: Run) -> None:
    """Train the model of $LEVADA_PIPELINE from the lake and register a version."""
    from levada.registry.errors import NotEnoughData
    from levada.registry.train import train as start

    settings, pipeline = _this_pipeline()
    try:
        start(settings, pipeline, run)
    except NotEnoughData as error:
        print(f"levada: {error}", file=sys.stderr)
        raise typer.Exit(SKIP_EXIT_CODE) from None


def promote(run: Run) -> None:
    """Judge the version that a run registered, sign the outcome and move the alias."""
    from levada.registry.promote import promote as start

    settings, pipeline = _this_pipeline()
    start(settings, pipeline, run)


def serve() -> None:
    """Answer predictions of $LEVADA_PIPELINE from its champion."""
    from levada.serving.serve import serve as start

    start(*_this_pipeline())


def _this_pipeline() -> tuple[Settings, Pipeline]:
    from levada.config import required, settings
    from levada.pipeline import load_pipeline
    from levada.process import configure_logging

    here = settings()
    configure_logging(here.log_level)
    return here, load_pipeline(here.pipelines, required(here.pipeline, "LEVADA_PIPELINE"))
