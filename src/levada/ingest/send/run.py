"""The whole way of a file: read, sent with several requests under way, noted, resumed."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

import orjson

from levada.ingest.send import state as states
from levada.ingest.send.client import GROUP, Collector, Outcome, Refusal, SendError
from levada.ingest.send.rows import Block, FileError, Place, Reader, Row, Unsendable, reader
from levada.ingest.send.state import State, edges
from levada.pipeline import Pipeline

KINDS: Final = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}
"""Kind of a file by its name."""
_BATCH_BYTES: Final = 256 * 1024
_SAVE_SECONDS: Final = 0.25


@dataclass(frozen=True)
class Options:
    """How a file is sent."""

    kind: str | None = None
    """csv, ndjson or parquet; by default from the file's name."""
    delimiter: str = ","
    """Between the cells of a CSV."""
    skip: Sequence[str] = ()
    """Columns that are left out."""
    batch: int = GROUP
    """Rows of a request, at most 1000."""
    in_flight: int = 1
    """Requests under way at once; with more than one, rows with the same key may change their order."""
    folder: Path | None = None
    """Where the state and the refusals are kept; by default beside the file."""
    again: bool = False
    """Send from the first row on, whatever the state says."""
    patience: float = 300
    """Seconds without an answered row after which sending gives up."""


@dataclass(frozen=True)
class Progress:
    """How far it is."""

    read: int
    """Bytes of the file up to the last row that is answered, about."""
    size: int
    """Bytes of the file."""
    accepted: int
    refused: int


@dataclass(frozen=True)
class Summary:
    """How it ended; counts are over all runs for this file."""

    accepted: int
    refused: int
    refusals: Path
    """Where the refused rows are named, if there are any."""
    sent_before: bool
    """Whether all of it was sent by an earlier run, and this one did nothing."""


@dataclass(frozen=True)
class _Batch:
    """Rows that go in one request, and what to note once they are answered."""

    block: Block
    first: int
    rows: Sequence[Row]


def send(
    path: Path,
    pipeline: Pipeline,
    url: Callable[[], str],
    key: Callable[[], str],
    options: Options,
    report: Callable[[Progress], None],
) -> Summary:
    """Send every row of a file that no earlier run has sent.

    Args:
        path: the file.
        pipeline: which takes them.
        url: base address of the collector.
        key: the API key.
        options: how.
        report: told how far it is, often.

    Raises:
        FileError: the file cannot be sent as it is; nothing was.
        SendError: sending cannot go on; the same command goes on later.
    """
    try:
        with path.open("rb") as file:
            return _send(file, path, pipeline, url, key, options, report)
    except OSError as error:
        raise FileError(f"{error.filename or path}: {error.strerror}") from error


def _send(
    file: BufferedReader,
    path: Path,
    pipeline: Pipeline,
    url: Callable[[], str],
    key: Callable[[], str],
    options: Options,
    report: Callable[[Progress], None],
) -> Summary:
    kind = options.kind or KINDS.get(path.suffix.lower())
    if kind is None:
        raise FileError(f"{path}: say what it is with --format csv, ndjson or parquet")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileError(f"{path} is being sent already") from None
    folder = options.folder or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the file its name is enough; a folder of states may have to do with two files of one name.
    told_apart = "" if options.folder is None else f".{edges(file)[:8]}"
    name = f"{path.name}{told_apart}.{pipeline.name}"
    state_path, refusals = folder / f"{name}.sent.json", folder / f"{name}.refused.ndjson"
    rows = reader(file, path, kind, pipeline, options.skip, options.delimiter)
    state = states.begin(file, state_path, pipeline.name)
    if options.again:
        state = State(pipeline=pipeline.name, file=state.file)
    if state.finished is not None:
        return Summary(state.accepted, state.refused, refusals, sent_before=True)
    stop = threading.Event()
    run = _Run(file, rows, state, state_path, refusals, report)
    collector = Collector(url, key, pipeline.name, connections=options.in_flight, patience=options.patience, stop=stop)
    try:
        with ThreadPoolExecutor(options.in_flight) as pool:
            try:
                run.all(pool, collector, options.in_flight + 2, options.batch)
            finally:
                stop.set()
    except SendError as error:
        raise SendError(
            f"{error}. {state.accepted} rows are accepted, {state.refused} refused. "
            "To go on where it stopped, run the same command again."
        ) from error
    finally:
        run.close()
        collector.close()
    return Summary(state.accepted, state.refused, refusals, sent_before=False)


class _Run:
    """One run over a file."""

    def __init__(
        self,
        file: BufferedReader,
        rows: Reader,
        state: State,
        state_path: Path,
        refusals: Path,
        report: Callable[[Progress], None],
    ) -> None:
        self._file, self._rows, self._state, self._state_path = file, rows, state, state_path
        self._refusals_path, self._report = refusals, report
        self._saved = 0.0
        # Before the file is cut: a state that says more than the file holds could not be gone on from.
        states.save(state, state_path)
        self._refusals = refusals.open("ab")
        if self._refusals.tell() < state.refused_bytes:
            self._refusals.close()
            raise FileError(
                f"{refusals} lacks rows that were refused before: put it back, or send all rows again with --again "
                "(no row will be there twice)"
            )
        # What was written after the last saved position is refused, and written, again.
        self._refusals.truncate(state.refused_bytes)
        self._refusals.seek(state.refused_bytes)

    def close(self) -> None:
        """Note how far it came; a file of refusals without any is taken away."""
        with self._refusals:
            self._save()
        if self._state.refused == 0:
            self._refusals_path.unlink(missing_ok=True)

    def _save(self) -> None:
        """Save the position. The refusals up to it are on the disk before, so that none is missing behind a kill."""
        self._refusals.flush()
        os.fsync(self._refusals.fileno())
        states.save(self._state, self._state_path)
        self._saved = time.monotonic()

    def all(self, pool: ThreadPoolExecutor, collector: Collector, window: int, size: int) -> None:
        """Send all that is left. Batches are noted in their order, however they are answered."""
        under_way: deque[tuple[_Batch, Future[Outcome]]] = deque()
        key = self._state.batch_key
        for batch in self._batches(size):
            lines = [row if isinstance(row, bytes) else b"" for row in batch.rows]
            under_way.append((batch, pool.submit(collector.deliver, key, batch.first, lines)))
            if len(under_way) >= window:
                self._note(*under_way.popleft())
        while under_way:
            self._note(*under_way.popleft())
        if not states.unchanged(self._state, self._file):
            raise SendError("the file was changed while it was sent: what was sent of it is a mixture")
        states.finish(self._state)

    def _batches(self, size: int) -> Iterator[_Batch]:
        """Rows that are not answered yet, in requests: within a group, and of a bounded size."""
        start = Place(self._state.offset_row, self._state.offset)
        for block in self._rows.blocks(start):
            first, rows = block.start.row, block.rows
            place = max(0, self._state.answered - first)
            while place < len(rows):
                end = min(place + size, len(rows), (first + place) // GROUP * GROUP + GROUP - first)
                held = 0
                for until in range(place, end):
                    row = rows[until]
                    held += len(row) + 1 if isinstance(row, bytes) else 1
                    if held > _BATCH_BYTES and until > place:
                        end = until
                        break
                yield _Batch(block, first + place, rows[place:end])
                place = end

    def _note(self, batch: _Batch, answer: Future[Outcome]) -> None:
        outcome = answer.result()
        refused = outcome.refused + [
            Refusal(batch.first + place + 1, 0, row.reason)
            for place, row in enumerate(batch.rows)
            if isinstance(row, Unsendable)
        ]
        for refusal in sorted(refused, key=lambda each: each.row):
            line = {self._rows.unit: refusal.row, "status": refusal.status, "reason": refusal.detail}
            self._refusals.write(orjson.dumps({**line, "errors": list(refusal.errors)}) + b"\n")
        state, block = self._state, batch.block
        state.offset, state.offset_row = block.start.offset, block.start.row
        state.answered = batch.first + len(batch.rows)
        state.accepted += outcome.accepted
        state.refused += len(refused)
        state.refused_bytes = self._refusals.tell()
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self._save()
        share = (state.answered - block.start.row) / max(1, len(block.rows))
        begun = block.start.offset if block.start.offset else block.read * block.start.row // max(1, state.answered)
        self._report(
            Progress(int(begun + (block.read - begun) * share), state.file.size, state.accepted, state.refused)
        )
