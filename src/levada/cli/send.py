"""`levada send`: a file to a pipeline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from levada.cli.line import Cluster, Context, Namespace

if TYPE_CHECKING:
    from levada.ingest.send import Progress

_PLAIN_SECONDS = 10.0


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(send)


def send(
    file: Annotated[Path, typer.Argument(help="CSV with a header, NDJSON or Parquet.", exists=True, dir_okay=False)],
    pipeline: Annotated[str, typer.Option(help="Name of the pipeline that takes the rows.")],
    url: Annotated[
        str | None, typer.Option(help="Address of the collector; by default that of the installed line.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="File with an API key; needed with --url.")] = None,
    values: Annotated[
        list[Path] | None,
        typer.Option(
            "--values", "-f", help="Values file that declares the pipeline; by default the collector is asked."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--format", help="csv, ndjson or parquet; by default by the file's name.")
    ] = None,
    delimiter: Annotated[str, typer.Option(help="Between the cells of a CSV.")] = ",",
    skip: Annotated[list[str] | None, typer.Option(help="Column that is left out; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Rows in a request.")] = 1000,
    in_flight: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Requests at once; by default 1, which keeps their order, and 4 where -f shows that there is no key.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for the state and the refused rows; by default beside the file.", file_okay=False),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Send all rows again, under the ids they had.")] = False,
    give_up: Annotated[float, typer.Option(help="Seconds without any row answered after which to give up.")] = 300,
    cluster: Cluster = "levada",
    context: Context = None,
    namespace: Namespace = "levada",
) -> None:
    """Send every row of a file once; run it again to go on after a stop. Exit code 1 if rows were refused."""
    from levada.ingest.send import KINDS, Options, SendError, declared
    from levada.ingest.send import send as start
    from levada.line.install import check

    delimiter = {"\\t": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1:
        raise typer.BadParameter("a delimiter is one character", param_hint="--delimiter")
    if kind is not None and kind not in KINDS.values():
        raise typer.BadParameter(f"{kind} is none of csv, ndjson and parquet", param_hint="--format")
    known = check(values) if values else None
    if known is not None and pipeline not in known:
        raise SendError(f"pipeline {pipeline} is not declared there; declared are {', '.join(known)}")
    with _collector(url, key_file, cluster, context, namespace) as (address, key):
        described = declared.fetch(address, key, pipeline) if known is None else known[pipeline]
        unordered = known is not None and described.key is None
        options = Options(
            kind=kind, delimiter=delimiter, skip=tuple(skip or ()), batch=batch,
            in_flight=in_flight or (4 if unordered else 1), folder=state, again=again, patience=give_up,
        )  # fmt: skip
        with _progress(file) as report:
            summary = start(file, described, address, key, options, report)
    if summary.sent_before:
        typer.echo(f"{file} was sent before, all of it: {summary.accepted} rows accepted, {summary.refused} refused.")
        typer.echo("To send it again under the same event ids, add --again.")
    else:
        typer.echo(f"{file}: {summary.accepted} rows accepted, {summary.refused} refused.")
    if summary.refused:
        typer.echo(f"Which rows, and why: {summary.refusals}", err=True)
        raise typer.Exit(1)


@contextmanager
def _collector(
    url: str | None, key_file: Path | None, cluster: str, context: str | None, namespace: str
) -> Iterator[tuple[Callable[[], str], Callable[[], str]]]:
    """Its address and an API key, both as they are when they are asked for."""
    from levada.config import read_secret
    from levada.line.target import find

    if url is not None and key_file is not None:
        address, file = url.rstrip("/"), key_file
        yield lambda: address, lambda: read_secret(file)
        return
    if url is not None or key_file is not None:
        raise typer.BadParameter("--url and --key-file go together")
    target = find(cluster=cluster, context=context, namespace=namespace)
    try:
        secret = target.secret("api-key", "key")
        yield lambda: target.url(target.name("collector"), 8080), lambda: secret
    finally:
        target.close()


@contextmanager
def _progress(file: Path) -> Iterator[Callable[[Progress], None]]:
    """A bar where somebody looks, else a line now and then."""
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rows]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(file.name, total=None, rows="")

        def report(now: Progress) -> None:
            rows = f"{now.accepted} rows" + (f", {now.refused} refused" if now.refused else "")
            bar.update(task, completed=now.read, total=now.size, rows=rows)

        yield report


def _plain() -> Callable[[Progress], None]:
    last = time.monotonic()

    def report(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_SECONDS:
            last = time.monotonic()
            share = now.read / max(1, now.size)
            typer.echo(f"{share:6.1%}  {now.accepted} rows accepted, {now.refused} refused", err=True)

    return report
