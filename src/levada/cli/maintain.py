"""Upkeep of a pipeline's tables: one run of it, for a CronJob or by hand."""

from __future__ import annotations

import typer

from levada.config import required, settings
from levada.pipeline import load_pipeline


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("maintain")(maintain)


def maintain() -> None:
    """Compact the tables of LEVADA_PIPELINE, forget their old snapshots, remove files that nothing names."""
    from levada import lake, process
    from levada.stream.maintain import maintain as upkeep

    config = settings()
    process.configure_logging(config.log_level)
    pipeline = load_pipeline(config.pipelines, required(config.pipeline, "LEVADA_PIPELINE"))
    for stream in pipeline.streams:
        report = upkeep(lake.catalog(config), stream)
        typer.echo(
            f"{stream.name}: {report.hours} hours compacted ({report.files_before} files into {report.files_after}), "
            f"{report.snapshots} snapshots forgotten, {report.removed} unnamed files removed, {report.waiting} waiting"
        )
        for reason in report.skipped:
            typer.echo(f"{stream.name}: left for the next run: hour {reason}")
