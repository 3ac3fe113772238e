"""The sink: one process that carries one pipeline's events from its topic to its table.

Work is done in *sessions*. A session claims the table, reads from the offsets that the table names, and commits rows
and offsets together. Whatever goes wrong ends it: the buffer is dropped and the next session starts from the table
again, so there is one way to recover and it is the way every start takes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import pyarrow as pa
import structlog
from confluent_kafka import Message
from pyiceberg.catalog.sql import SqlCatalog

from levada import lake, process
from levada.config import Settings, required
from levada.errors import UserError
from levada.pipeline import Pipeline, load_pipeline, seconds
from levada.stream import metrics
from levada.stream.dead import DeadLetter, DeadLetters
from levada.stream.events import Decoder
from levada.stream.source import Source
from levada.stream.start import NeedsOperatorError, replaced, starting_points
from levada.stream.table import FencedError, OwnedTable
from levada.stream.window import Window

_POLL_MESSAGES: Final = 5_000
_POLL_SECONDS: Final = 0.2
_IDLE_SECONDS: Final = 1.0
_COMMIT_GAP_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0
_FULL_ROWS: Final = 25_000
_FULL_BYTES: Final = 32 * 1024 * 1024
_MAX_BACKOFF: Final = 30.0
_READY_SECONDS: Final = 60.0
_LIVE_SECONDS: Final = 300.0

log = structlog.get_logger(__name__)


class TopicGrewError(Exception):
    """The topic has more partitions than the session reads; the next session takes them all."""


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


def to_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table; column by column it is four times as fast as ``Table.from_pylist``."""
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


class Session:
    """One claim on the table, from start to first error."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, catalog: SqlCatalog, beat: Callable[[], None] = lambda: None
    ) -> None:
        kafka = required(settings.kafka, "LEVADA_KAFKA__BOOTSTRAP")
        self._pipeline = pipeline
        self._schema = lake.arrow_schema(pipeline)
        self._commit_every = seconds(pipeline.stream.commit_every)
        self._window = Window(seconds(pipeline.lake.dedupe_window))
        self._catalog = catalog
        self._beat = beat
        self._source = Source(kafka, pipeline)
        self._dead = DeadLetters(kafka, pipeline)
        self._last_commit = self._last_look = 0.0

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
        start = starting_points(
            self._pipeline, self._table.offsets, self._topic, self._source.bounds(self._topic.partitions)
        )
        self._table.claim(self._topic.id, start)
        self._reached = dict(start)
        self._show_table()
        self._decoder = Decoder(self._pipeline, self._topic.id)
        self._fill_window()
        self._source.read_from(start)
        self._buffer = Buffer()
        self._last_look = time.monotonic()
        log.info("table claimed", pipeline=self._pipeline.name, topic_id=self._topic.id, start=start)

    def step(self) -> None:
        """Read for a moment; commit if it is time."""
        messages = self._source.poll(_POLL_MESSAGES, _POLL_SECONDS)
        if messages:
            self._take(messages)
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
        events = []
        for message in messages:
            decoded = self._decoder.decode(message, now)
            if isinstance(decoded, DeadLetter):
                self._dead.send(decoded)
                buffer.rules.append(decoded.rule)
            else:
                events.append(decoded)
            buffer.reached[message.partition()] = message.offset() + 1
            buffer.bytes += len(message.value() or b"")
        new = [event for event, is_new in zip(events, self._window.new([e.id for e in events]), strict=True) if is_new]
        buffer.duplicates += len(events) - len(new)
        if new:
            buffer.tables.append(to_table([event.row for event in new], self._schema))
            buffer.rows += len(new)
            times = [event.time for event in new]
            buffer.oldest = min(times) if buffer.oldest is None else min(buffer.oldest, *times)
            buffer.newest = max(times) if buffer.newest is None else max(buffer.newest, *times)

    def commit(self) -> None:
        """Put what is buffered into the table, together with how far it was read."""
        buffer = self._buffer
        if not buffer.reached:
            return
        begin = time.monotonic()
        # Asked before every commit: the answer vouches that all that was read since the start is of this topic.
        grown = self._topic_changed()
        # Dead letters first: once the offsets are in the table their events are never read again.
        self._dead.flush()
        rows = pa.concat_tables(buffer.tables) if buffer.tables else self._schema.empty_table()
        self._table.append(rows, buffer.reached)
        self._committed(begin)
        self._source.show_progress(buffer.reached)
        self._table.expire()
        if grown:
            raise TopicGrewError

    def _committed(self, begin: float) -> None:
        buffer, name = self._buffer, self._pipeline.name
        now = datetime.now(UTC)
        self._reached |= buffer.reached
        self._show_table()
        self._window.commit(now)
        self._buffer = Buffer()
        self._last_commit = time.monotonic()
        metrics.COMMITS.labels(name).inc()
        metrics.COMMIT_SECONDS.labels(name).observe(self._last_commit - begin)
        metrics.ROWS.labels(name).inc(buffer.rows)
        metrics.DUPLICATES.labels(name).inc(buffer.duplicates)
        for rule in buffer.rules:
            metrics.DEAD_LETTERS.labels(name, rule).inc()
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
            raise TopicGrewError

    def _topic_changed(self) -> bool:
        """Whether the topic grew; raises if it is another one."""
        topic = self._source.topic()
        self._last_look = time.monotonic()
        if topic.id != self._topic.id:
            raise replaced(self._pipeline, topic)
        return topic.partitions != self._topic.partitions

    def _fill_window(self) -> None:
        since = datetime.now(UTC) - timedelta(seconds=seconds(self._pipeline.lake.dedupe_window))
        committed = self._table.table.scan(
            row_filter=f"_ingested_at >= '{since.isoformat()}'", selected_fields=("_event_id", "_ingested_at")
        )

        def batches() -> Iterator[tuple[list[str], list[datetime]]]:
            for batch in committed.to_arrow_batch_reader():
                self._beat()
                yield batch["_event_id"].to_pylist(), batch["_ingested_at"].to_pylist()

        self._window.fill(batches())

    def _show_table(self) -> None:
        metrics.TABLE_ROWS.labels(self._pipeline.name).set(self._table.rows)
        for partition, reached in self._reached.items():
            metrics.COMMITTED.labels(self._pipeline.name, partition).set(reached)

    def _show_lag(self) -> None:
        for partition, reached in self._reached.items():
            end = self._source.end(partition)
            if end is not None:
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
        for rule in ("json", "type", "required", "unknown", "oneOf", "event-id", "event-time"):
            metrics.DEAD_LETTERS.labels(pipeline.name, rule)  # an alert on a rate needs the zero before the first

    def live(self) -> bool:
        """Whether the loop still turns; an outage of Kafka or a store does not stop it."""
        return time.monotonic() - self._alive < _LIVE_SECONDS

    def ready(self) -> bool:
        """Whether events reach the lake, or did a moment ago."""
        return self._good is not None and time.monotonic() - self._good < _READY_SECONDS

    def run(self, stop: threading.Event) -> None:
        """Carry events until ``stop`` is set.

        Raises:
            FencedError: another sink has taken the table. Claiming it back at once would go to and fro for ever.
        """
        while not stop.is_set():
            try:
                self._session(stop)
                return
            except FencedError:
                raise
            except TopicGrewError:
                log.info("the topic has new partitions", pipeline=self._pipeline.name)
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
    sink = Sink(settings, load_pipeline(settings.pipelines, name))
    process.run(sink.run, settings, ready=sink.ready, live=sink.live)
