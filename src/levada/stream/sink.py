"""The sink: one process that carries a pipeline's events from its topic to its table, and its predictions beside them.

Work is done in *sessions*. A session claims the table, reads from the offsets that the table names, and commits rows
and offsets together. Whatever goes wrong ends it: the buffer is dropped and the next session starts from the table
again, so there is one way to recover and it is the way every start takes.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from confluent_kafka import Message
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import BooleanExpression
from pyiceberg.expressions.parser import parse
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.table import FileScanTask
from pyiceberg.types import TimestamptzType

from levada import lake, process
from levada.config import Settings, required
from levada.errors import UserError
from levada.pipeline import Pipeline, load_pipeline, seconds
from levada.stream import metrics
from levada.stream.dead import DeadLetters
from levada.stream.events import LATE, Decoder
from levada.stream.source import Source
from levada.stream.start import NeedsOperatorError, note_replaced, starting_points
from levada.stream.table import FencedError, OwnedTable
from levada.stream.window import Tally, Window

_POLL_MESSAGES: Final = 10_000  # enough that a batch's own cost is nothing; more only fall out of the caches
_POLL_SECONDS: Final = 0.2
_IDLE_SECONDS: Final = 1.0
_COMMIT_GAP_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0
_FULL_ROWS: Final = 150_000
_FULL_BYTES: Final = 32 * 1024 * 1024
_MAX_BACKOFF: Final = 30.0
_READY_SECONDS: Final = 60.0
_STANDBY_SECONDS: Final = 90.0  # longer than the minute that Prometheus by default lets pass between two looks
_LIVE_SECONDS: Final = 300.0

_PREDICTIONS_SHARE: Final = 10  # the part of the window's ids that predictions may have

_CLOCK_SECONDS: Final = 86_400.0  # a row's stamp may be ahead of this machine's clock; look that far
_COUNTED_ROWS: Final = 1_000_000  # rows whose times are read at once, 8 bytes each
_MICRO: Final = 1_000_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

log = structlog.get_logger(__name__)


class SinkError(UserError):
    """A sink that was set up wrong; the message says what to change."""


class TopicChangedError(Exception):
    """The topic has more partitions, or is another one that may be read; the next session starts from that."""


class Buffer:
    """What was read and is not committed yet."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.reached: dict[int, int] = {}
        """Partition → next offset once this is committed."""
        self.rows = 0
        self.duplicates = 0
        self.bytes = 0
        self.rules: list[str] = []
        """The rule that each dead letter broke."""
        self.oldest: datetime | None = None
        self.newest: datetime | None = None
        self.since = time.monotonic()
        self.last = self.since

    def due(self, commit_every: float, last_commit: float, now: float) -> bool:
        """Whether to commit: at once when full, else when the stream pauses, and at the latest after commit_every."""
        if not self.reached:
            return False
        if self.rows >= _FULL_ROWS or self.bytes >= _FULL_BYTES:
            return True
        if now - last_commit < _COMMIT_GAP_SECONDS:
            return False
        return now - self.last >= _IDLE_SECONDS or now - self.since >= commit_every


@dataclass(frozen=True)
class _File:
    """A file of the table, and when its rows were taken in: µs since 1970, both included."""

    oldest: int
    newest: int
    task: FileScanTask


def _groups(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Files one after the other, as many together as have ``_COUNTED_ROWS`` rows."""
    group: list[_File] = []
    rows = 0
    for file in files:
        group.append(file)
        rows += file.task.file.record_count
        if rows >= _COUNTED_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _taken_in(since: int, until: int) -> BooleanExpression:
    """Rows that a sink took in at or after the one and before the other time, in µs since 1970."""
    first, end = ((_EPOCH + timedelta(microseconds=moment)).isoformat() for moment in (since, until))
    return parse(f"_ingested_at >= '{first}' AND _ingested_at < '{end}'")


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Without a look for cycles: a batch is hundreds of thousands of objects that form none, and the look costs more
    than decoding them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Session:
    """One claim on the table, from start to first error."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, catalog: SqlCatalog, beat: Callable[[], None] = lambda: None
    ) -> None:
        kafka = required(settings.kafka, "LEVADA_KAFKA__BOOTSTRAP")
        self._settings = settings
        self._pipeline = pipeline
        self._schema = lake.arrow_schema(pipeline)
        self._commit_every = seconds(pipeline.stream.commit_every)
        self._index = settings.sink.index
        if self._index >= pipeline.stream.replicas:
            raise SinkError(
                f"LEVADA_SINK__INDEX is {self._index}, pipeline {pipeline.name} has {pipeline.stream.replicas} sinks, "
                "counted from 0"
            )
        self._window = Window(seconds(pipeline.lake.dedupe_window), settings.sink.window_ids)
        self._shortened = False
        self._catalog = catalog
        self._beat = beat
        self._source = Source(kafka, pipeline)
        self._dead = DeadLetters(kafka, pipeline)
        self._last_commit = self._last_look = 0.0
        # What is added to time.monotonic(); the wall clock may be set while this runs.
        self._since_1970 = time.time() - time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()
        self._dead.close()

    def start(self) -> None:
        """Claim the table and go to where it says.

        Raises:
            NeedsOperatorError: table and topic do not belong together.
        """
        self._topic = self._source.topic()
        self._table = OwnedTable(self._catalog, self._pipeline)
        bounds = self._source.bounds(self._own(self._topic.partitions))
        self._ends = {partition: end for partition, (_, end) in bounds.items()}
        start = starting_points(self._pipeline, self._table.offsets, self._topic, bounds)
        self._table.claim(self._topic.id, start)
        # A sink that is killed again and again before its first rows must not fill the table with its claims.
        self._table.expire()
        self._reached = dict(start)
        self._show_table()
        self._decoder = Decoder(self._pipeline, self._topic.id)
        self._fill_window()
        self._source.read_from(start)
        self._buffer = Buffer()
        self._last_look = time.monotonic()
        log.info(
            "partitions claimed", pipeline=self._pipeline.name, sink=self._index, topic_id=self._topic.id, start=start
        )

    def step(self) -> None:
        """Read for a moment; commit if it is time."""
        with _no_garbage():
            messages = self._source.poll(_POLL_MESSAGES, _POLL_SECONDS)
            if messages:
                self._take(messages)
            del messages
        now = time.monotonic()
        if self._buffer.due(self._commit_every, self._last_commit, now):
            self.commit()
        elif now - self._last_look >= _LOOK_SECONDS:
            self._look()
        self._show_lag()

    def _take(self, messages: list[Message]) -> None:
        """Decode messages into the buffer."""
        buffer, now = self._buffer, datetime.now(UTC)
        buffer.last = time.monotonic()
        if not buffer.reached:
            buffer.since = buffer.last
        decoded = self._decoder.decode(messages, now)
        buffer.reached |= decoded.reached
        for letter in decoded.letters:
            self._dead.send(letter, self._topic.id)
            buffer.rules.append(letter.rule)
        buffer.bytes += decoded.size
        rows, new = decoded.rows, self._window.new(decoded.ids)
        buffer.duplicates += len(new) - int(new.sum())
        if not new.all():
            rows = rows.filter(pa.array(new))
        if rows.num_rows:
            buffer.tables.append(rows)
            buffer.rows += rows.num_rows
            bounds = pc.min_max(rows["_event_time"]).as_py()
            buffer.oldest = bounds["min"] if buffer.oldest is None else min(buffer.oldest, bounds["min"])
            buffer.newest = bounds["max"] if buffer.newest is None else max(buffer.newest, bounds["max"])

    def commit(self) -> None:
        """Put what is buffered into the table, together with how far it was read."""
        buffer = self._buffer
        if not buffer.reached:
            return
        begin = time.monotonic()
        # Asked before every commit: the answer vouches that all that was read since the start is of this topic.
        changed = self._topic_changed()
        # Dead letters first: once the offsets are in the table their events are never read again.
        self._dead.flush()
        rows = pa.concat_tables(buffer.tables) if buffer.tables else self._schema.empty_table()
        self._table.append(rows, buffer.reached)
        self._committed(begin)
        self._source.show_progress(buffer.reached)
        self._table.expire()
        if changed:
            raise TopicChangedError

    def _committed(self, begin: float) -> None:
        buffer, name = self._buffer, self._pipeline.name
        now = datetime.now(UTC)
        self._reached |= buffer.reached
        self._show_table()
        self._window.commit(self._since_1970 + time.monotonic())
        self._show_window()
        self._buffer = Buffer()
        self._last_commit = time.monotonic()
        metrics.COMMITS.labels(name).inc()
        metrics.COMMIT_SECONDS.labels(name).observe(self._last_commit - begin)
        metrics.ROWS.labels(name).inc(buffer.rows)
        metrics.DUPLICATES.labels(name).inc(buffer.duplicates)
        for rule in buffer.rules:
            metrics.DEAD_LETTERS.labels(name, rule).inc()
        metrics.LATE.labels(name).inc(buffer.rules.count(LATE))
        if buffer.oldest is not None and buffer.newest is not None:
            metrics.FRESHNESS.labels(name).observe((now - buffer.oldest).total_seconds())
            metrics.NEWEST_EVENT.labels(name).set(buffer.newest.timestamp())
        log.info(
            "committed",
            pipeline=name,
            rows=buffer.rows,
            dead_letters=len(buffer.rules),
            duplicates=buffer.duplicates,
            seconds=round(self._last_commit - begin, 3),
        )

    def _look(self) -> None:
        if self._topic_changed():
            self.commit()
            raise TopicChangedError

    def _topic_changed(self) -> bool:
        """Whether the topic grew.

        Raises:
            NeedsOperatorError: it is another one, and the policy is to stop.
            TopicChangedError: it is another one, and the policy is to read it. What was read and not committed is
                dropped: nobody can tell of which of the two it is.
        """
        topic = self._source.topic()
        self._last_look = time.monotonic()
        if topic.id != self._topic.id:
            note_replaced(self._pipeline, topic, uncommitted=self._buffer.rows)
            raise TopicChangedError
        return topic.partitions != self._topic.partitions

    def _own(self, partitions: tuple[int, ...]) -> tuple[int, ...]:
        own = tuple(part for part in partitions if part % self._pipeline.stream.replicas == self._index)
        if not own:
            raise SinkError(
                f"topic {self._topic.id} has {len(partitions)} partitions, none is for sink {self._index} of "
                f"{self._pipeline.stream.replicas}: run levada topics apply"
            )
        return own

    def _fill_window(self) -> None:
        """Know what the table has, of all partitions: a key moves to another one when the topic grows.

        Which rows fit is counted before any id is read, and the ids are read in parts of the window: how many rows the
        table has, and in how large files, costs no memory.
        """
        begin, now = time.monotonic(), time.time()
        oldest = int((now - seconds(self._pipeline.lake.dedupe_window)) * _MICRO)
        files = self._files(oldest, int((now + _CLOCK_SECONDS) * _MICRO))
        tally = Tally(oldest, files[0].newest + 1 if files else oldest + 1)
        most = self._settings.sink.window_ids
        for group in _groups(files):
            if len(tally) > most and tally.after(group[0].newest) > most:
                break  # whatever is in this and older files does not fit
            for batch in self._read(group, "_ingested_at", oldest, tally.until):
                tally.add(batch.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy())
        for first, end in self._window.spans(tally):
            own = [file for file in files if file.oldest < end and file.newest >= first]
            ids = self._read(own, "_event_id", first, end)
            self._window.fill((pc.cast(batch, pa.binary()).to_pylist() for batch in ids), min(end / _MICRO, now))
        metrics.WINDOW_FILL_SECONDS.labels(self._pipeline.name).set(time.monotonic() - begin)
        self._show_window()

    def _files(self, since: int, until: int) -> list[_File]:
        """The table's files with rows that were taken in between these times (µs since 1970), newest first."""
        column = self._table.table.schema().find_field("_ingested_at").field_id

        def bound(bounds: dict[int, bytes] | None, unknown: int) -> int:
            raw = (bounds or {}).get(column)
            return unknown if raw is None else int(from_bytes(TimestamptzType(), raw))

        found = [
            _File(
                bound(task.file.lower_bounds, since),
                min(bound(task.file.upper_bounds, until - 1), until - 1),
                task,
            )
            for task in self._table.table.scan(row_filter=_taken_in(since, until)).plan_files()
        ]
        return sorted(found, key=lambda file: file.newest, reverse=True)

    def _read(self, files: Sequence[_File], column: str, since: int, until: int) -> Iterator[pa.Array]:
        """One column of the rows of these files that were taken in between these times (µs since 1970)."""
        table = self._table.table
        scan = ArrowScan(table.metadata, table.io, table.schema().select(column), _taken_in(since, until))
        for batch in scan.to_record_batches([file.task for file in files]):
            self._beat()
            yield batch[column]

    def _show_window(self) -> None:
        name, reach = self._pipeline.name, self._window.reach(self._since_1970 + time.monotonic())
        metrics.WINDOW_IDS.labels(name).set(len(self._window))
        metrics.WINDOW_SHORTENED.labels(name).set(self._window.shortened)
        metrics.WINDOW_REACH.labels(name).set(reach)
        if self._window.shortened and not self._shortened:
            self._shortened = True
            log.warning(
                "the dedupe window is full: it forgets ids before their time",
                pipeline=name,
                ids=len(self._window),
                reaches_back_seconds=round(reach, 1),
            )

    def _show_table(self) -> None:
        name = self._pipeline.name
        metrics.TABLE_ROWS.labels(name).set(self._table.rows)
        metrics.TABLE_FILES.labels(name).set(self._table.files)
        metrics.SNAPSHOTS.labels(name).set(len(self._table.table.metadata.snapshots))
        metrics.CONFLICTS.labels(name).inc(self._table.conflicts)
        self._table.conflicts = 0
        for partition, reached in self._reached.items():
            metrics.COMMITTED.labels(name, partition).set(reached)

    def _show_lag(self) -> None:
        for partition, reached in self._reached.items():
            end = self._source.end(partition)
            if end is None:
                end = self._ends[partition]
            metrics.LAG.labels(self._pipeline.name, partition).set(max(0, end - reached))


class Sink:
    """Sessions one after the other, until told to stop."""

    def __init__(self, settings: Settings, pipeline: Pipeline) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._alive = time.monotonic()
        self._good: float | None = None
        self._failures = 0
        self._stuck_on: str | None = None
        for rule in ("json", "type", "required", "unknown", "oneOf", "event-id", "event-time", LATE):
            metrics.DEAD_LETTERS.labels(pipeline.name, rule)  # an alert on a rate needs the zero before the first
        metrics.FENCED.labels(pipeline.name)

    def live(self) -> bool:
        """Whether the loop still turns; an outage of Kafka or a store does not stop it."""
        return time.monotonic() - self._alive < _LIVE_SECONDS

    def ready(self) -> bool:
        """Whether events reach the lake, or did a moment ago."""
        return self._good is not None and time.monotonic() - self._good < _READY_SECONDS

    def run(self, stop: threading.Event) -> None:
        """Carry events until ``stop`` is set.

        Raises:
            FencedError: another sink has taken a partition of this one; it has stood by since, for a minute and a half
                or until the stop. Claiming it back at once would go to and fro for ever.
        """
        while not stop.is_set():
            try:
                self._session(stop)
                return
            except FencedError as error:
                self._stand_by(error, stop)
                raise
            except TopicChangedError:
                log.info("the topic has changed", pipeline=self._pipeline.name)
                continue
            except NeedsOperatorError as error:
                self._stand_still(error)
            except UserError as error:
                log.warning("started over", pipeline=self._pipeline.name, error=str(error))
                metrics.FAILURES.labels(self._pipeline.name, type(error).__name__).inc()
            except Exception as error:
                log.exception("started over", pipeline=self._pipeline.name)
                metrics.FAILURES.labels(self._pipeline.name, type(error).__name__).inc()
            self._beat()
            stop.wait(min(_MAX_BACKOFF, 2.0 ** min(self._failures, 5)))
            self._failures += 1

    def _session(self, stop: threading.Event) -> None:
        self._beat()
        with (
            contextlib.closing(lake.catalog(self._settings)) as catalog,
            Session(self._settings, self._pipeline, catalog, self._beat) as session,
        ):
            session.start()
            self._go_on()
            while not stop.is_set():
                session.step()
                self._alive = self._good = time.monotonic()
                self._failures = 0
            session.commit()

    def _beat(self) -> None:
        self._alive = time.monotonic()

    def _go_on(self) -> None:
        if self._stuck_on is not None:
            metrics.NEEDS_OPERATOR.labels(self._pipeline.name, self._stuck_on).set(0)
            self._stuck_on = None
        self._good = time.monotonic()

    def _stand_by(self, error: FencedError, stop: threading.Event) -> None:
        """Not ready, but there: what this process counted ends with it, and somebody has to see that it was fenced."""
        metrics.FENCED.labels(self._pipeline.name).inc()
        log.error("the sink is fenced and stands by", pipeline=self._pipeline.name, error=str(error))
        self._good = None
        self._beat()
        stop.wait(_STANDBY_SECONDS)

    def _stand_still(self, error: NeedsOperatorError) -> None:
        log.error("the sink stands still", pipeline=self._pipeline.name, state=error.state, error=str(error))
        if self._stuck_on not in (None, error.state):
            metrics.NEEDS_OPERATOR.labels(self._pipeline.name, self._stuck_on).set(0)
        metrics.NEEDS_OPERATOR.labels(self._pipeline.name, error.state).set(1)
        self._stuck_on, self._good = error.state, None


def run(settings: Settings) -> None:
    """The process ``levada sink``."""
    name = required(settings.pipeline, "LEVADA_PIPELINE")
    logging.getLogger("pyiceberg").setLevel(logging.WARNING)
    if "jemalloc" in pa.supported_memory_backends():
        # The default pool keeps what it once had; under a pod's memory limit that is what kills.
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    sinks = [
        Sink(_for_predictions(settings) if number else settings, stream)
        for number, stream in enumerate(load_pipeline(settings.pipelines, name).streams)
        if settings.sink.index < stream.stream.replicas or not number
    ]
    process.run(
        lambda stop: run_all(sinks, stop),
        settings,
        ready=lambda: all(sink.ready() for sink in sinks),
        live=lambda: all(sink.live() for sink in sinks),
    )


def _for_predictions(settings: Settings) -> Settings:
    # They come again only where a request is repeated, so few ids do; what there is of memory is the events'.
    window = settings.sink.window_ids // _PREDICTIONS_SHARE
    return settings.model_copy(update={"sink": settings.sink.model_copy(update={"window_ids": window})})


def run_all(sinks: Sequence[Sink], stop: threading.Event) -> None:
    """Carry several streams side by side until ``stop`` is set.

    Raises:
        Exception: one of them has ended by it; the others have finished what they had begun.
    """
    with ThreadPoolExecutor(len(sinks), "sink") as threads:
        running = [threads.submit(sink.run, stop) for sink in sinks]
        wait(running, return_when=FIRST_EXCEPTION)
        stop.set()
    for each in running:
        each.result()
