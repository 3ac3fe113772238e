"""What was answered, on its way to the lake: a queue, and a thread that hands it to Kafka.

An answer costs the time to put it into the queue. What finds no room there, or is not taken by Kafka, is dropped and
counted: a prediction is worth more than the record of it.
"""

from __future__ import annotations

import itertools
import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog
from prometheus_client import Counter

from levada.config import KafkaSettings
from levada.event import MAX_EVENT_ID, SCHEMA_VERSION
from levada.http.request import MAX_BATCH_KEY, event_key_of
from levada.pipeline import MODEL_SCORE, MODEL_VERSION, SHADOW, Pipeline
from levada.serving.direct import Asked
from levada.serving.forms import Row
from levada.serving.loaded import Loaded, Outcomes, Scores

if TYPE_CHECKING:
    from confluent_kafka import Producer

_MAX_ROWS: Final = 2_000
"""Waiting, from which on nothing more is taken; what is taken before may have more of its own."""
_MAX_BYTES: Final = 4_194_304
"""The same for the bodies that asked for them: a row may hold a text of any length."""
_CHUNK: Final = 50
"""Rows that are written at once, in some tenths of a millisecond, for which answers may have to wait."""
_PAUSE_SECONDS: Final = 0.05
_REST: Final = 9
"""Seconds of rest for each second of work, at least."""
_QUEUE_KBYTES: Final = 4_096
_TIMEOUT_SECONDS: Final = 30
_FLUSH_SECONDS: Final = 8.0
_NOTE_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 1.0

LOGGED: Final = Counter("levada_prediction_log_rows_total", "Predictions that Kafka has", ["name"])
DROPPED: Final = Counter(
    "levada_prediction_log_dropped_total",
    "Predictions that were answered and not kept: too many waited (busy), Kafka did not take them (kafka), the "
    "version knows another declaration (declaration), or they cannot be written (error)",
    ["name", "reason"],
)

log = structlog.get_logger()

_Item = tuple[float, Loaded, Sequence[Row], Outcomes, Scores, Asked, int, str]


class PredictionLog:
    """The queue and the thread of one pipeline's predictions."""

    def __init__(self, kafka: KafkaSettings, name: str, stream: Pipeline, share: float) -> None:
        """Keep predictions.

        Args:
            kafka: where they go.
            name: the pipeline.
            stream: what is derived from it for its predictions.
            share: of requests that are kept, 0 to 1.
        """
        self._kafka = kafka
        self._name = name
        self._stream = stream
        self._share = share
        self._queue: deque[_Item] = deque()
        # Rows and bytes; each is written by one thread.
        self._mirrored = self._shadowed = self._taken = 0
        self._bytes_mirrored = self._bytes_shadowed = self._bytes_taken = 0
        self._handed = self._failed = self._told = 0
        self._prefix = secrets.token_urlsafe(9).encode()
        self._count = itertools.count(1)
        self._producer: Producer | None = None
        self._lost = False
        self._noted = 0.0
        self._shapes: dict[str, list[tuple[str, int]] | None] = {}
        self._fixed = [("pipeline", stream.name), ("schema", SCHEMA_VERSION)]
        self._logged = LOGGED.labels(name)
        self._dropped = {reason: DROPPED.labels(name, reason) for reason in ("busy", "kafka", "declaration", "error")}

    def name(self, headers: dict[bytes, bytes], rows: int) -> bytes:
        """The event id of a request, or what the ids of its rows are made from; nothing if it is not kept.

        Raises:
            Problem: 400 for an Idempotency-Key that cannot be that.
        """
        given = event_key_of(headers, MAX_EVENT_ID if rows == 1 else MAX_BATCH_KEY)
        if self._share < 1 and random.random() >= self._share:  # noqa: S311
            return b""
        return given or b"%b.%d" % (self._prefix, next(self._count))

    def mirror(
        self, model: Loaded, rows: Sequence[Row], outcomes: Outcomes, scores: Scores, asked: Asked, size: int
    ) -> None:
        """Keep what was answered; never waits."""
        if self._has_room(len(rows)):
            self._mirrored += len(rows)
            self._bytes_mirrored += size
            self._queue.append((time.time(), model, rows, outcomes, scores, asked, size, ""))

    def shadow(
        self, model: Loaded, rows: Sequence[Row], outcomes: Outcomes, scores: Scores, asked: Asked, size: int
    ) -> None:
        """Keep what a challenger said to the same, beside what was answered."""
        if self._has_room(len(rows)):
            self._shadowed += len(rows)
            self._bytes_shadowed += size
            self._queue.append((time.time(), model, rows, outcomes, scores, asked, size, SHADOW))

    def _has_room(self, rows: int) -> bool:
        waiting = self._mirrored + self._shadowed - self._taken
        if waiting < _MAX_ROWS and self._bytes_mirrored + self._bytes_shadowed - self._bytes_taken < _MAX_BYTES:
            return True
        self._dropped["busy"].inc(rows)
        return False

    def run(self, stop: threading.Event) -> None:
        """Hand over what comes until ``stop``, and then what is left, for some seconds at most."""
        while not stop.is_set():
            self._look(stop)
            stop.wait(_PAUSE_SECONDS)
        self._look(stop)
        if self._producer is not None:
            self._producer.flush(_FLUSH_SECONDS)
            self._give_up(self._producer)

    def _look(self, stop: threading.Event) -> None:
        try:
            if self._queue:
                self._work(stop)
            if self._producer is not None:
                self._poll(self._producer)
        except Exception as error:  # without this thread nothing would be kept again
            self._note(error, error)

    def _work(self, stop: threading.Event) -> None:
        """Hand over all that waits, with rests."""
        try:
            if self._producer is not None and self._lost:
                self._give_up(self._producer)
                self._producer = None
            if self._producer is None:
                self._producer = self._connect()
        except Exception as error:  # as while its password is not there yet; what waits goes on waiting
            self._note(error)
            stop.wait(_AGAIN_SECONDS)
            return
        begin, written = time.thread_time(), 0
        for event_id, moment, value in self._messages():
            self._send(event_id, moment, value)
            written += 1
            if written == _CHUNK:
                self._poll(self._producer)
                stop.wait(_REST * (time.thread_time() - begin))
                begin, written = time.thread_time(), 0

    def _messages(self) -> Iterator[tuple[str, str, bytes]]:
        """Id, time and value of each prediction that waits."""
        while self._queue:
            at, model, rows, outcomes, scores, asked, size, suffix = self._queue.popleft()
            self._taken += len(rows)
            self._bytes_taken += size
            moment = datetime.fromtimestamp(at, UTC).isoformat()
            shape = self._shape(model)
            if shape is None:
                self._dropped["declaration"].inc(len(rows))
                continue
            ids = (event_id for name, count in asked for event_id in _ids(name.decode(), count, suffix))
            left = len(rows)
            try:
                for event_id, row, outcome, score in zip(ids, rows, outcomes, scores.tolist(), strict=True):
                    if event_id:
                        record: dict[str, Any] = {name: row[place] for name, place in shape}
                        record[model.model.meta.label] = model.label(outcome)
                        record[MODEL_VERSION] = model.version
                        record[MODEL_SCORE] = score[int(outcome)] if model.model.meta.labels else None
                        yield event_id, moment, orjson.dumps(record)
                    left -= 1
            finally:
                if left:
                    self._dropped["error"].inc(left)

    def _shape(self, model: Loaded) -> list[tuple[str, int]] | None:
        """The features that have a column, and their places in a row; None for a version that predicts another label.

        A version may be older than the declaration.
        """
        if model.version not in self._shapes:
            types, meta = self._stream.types, model.model.meta
            shape = [(f.name, place) for place, f in enumerate(meta.features) if types.get(f.name) == f.type]
            self._shapes[model.version] = shape if meta.label in types else None
        return self._shapes[model.version]

    def _send(self, event_id: str, moment: str, value: bytes) -> None:
        from confluent_kafka import KafkaException

        headers = [("event-id", event_id), ("event-time", moment), *self._fixed]
        try:
            self._producer.produce(self._stream.topic_name, value, event_id, headers=headers)  # type: ignore[union-attr]
        except (BufferError, KafkaException) as error:
            self._not_taken(error)
        else:
            self._handed += 1

    def _poll(self, producer: Producer) -> None:
        """Let those speak that were not delivered, and count the others.

        To be told of each that was would take the time of a call; those that are no longer waited for are as many.
        """
        producer.poll(0)
        delivered = self._handed - self._failed - len(producer)
        if delivered > self._told:
            self._logged.inc(delivered - self._told)
            self._told = delivered

    def _give_up(self, producer: Producer) -> None:
        """Count what a client that is not asked any more has not delivered."""
        self._poll(producer)
        left = len(producer)
        self._failed += left
        self._dropped["kafka"].inc(left)

    def _connect(self) -> Producer:
        # Loaded here, so that it takes no time from the start of the process.
        from confluent_kafka import Producer

        self._lost = False
        return Producer(
            {
                **self._kafka.producer(),
                "client.id": f"levada-predictor-{self._name}",
                "linger.ms": 50,
                "message.timeout.ms": _TIMEOUT_SECONDS * 1000,
                "queue.buffering.max.kbytes": _QUEUE_KBYTES,
                "reconnect.backoff.max.ms": 2_000,
                "delivery.report.only.error": True,
                "on_delivery": self._not_delivered,
                "error_cb": self._problem,
                "logger": logging.getLogger("librdkafka"),
            }
        )

    def _problem(self, error: Any) -> None:
        # After an error that ends the client, as when its rights come later than its password, a new one takes over.
        self._lost = self._lost or error.fatal()

    def _not_delivered(self, error: object, _: object) -> None:
        self._failed += 1
        self._not_taken(error)

    def _not_taken(self, error: object) -> None:
        self._dropped["kafka"].inc()
        self._note(error)

    def _note(self, error: object, unforeseen: Exception | None = None) -> None:
        if (now := time.monotonic()) > self._noted:  # the counter has them all
            self._noted = now + _NOTE_SECONDS
            log.warning(
                "predictions are not kept", model=self._name, topic=self._stream.topic_name, error=str(error),
                exc_info=unforeseen,
            )  # fmt: skip


def _ids(name: str, rows: int, suffix: str) -> Iterator[str]:
    """The event id of each row of a request, as the collector numbers the lines of a batch; empty: it is not kept."""
    for number in range(1, rows + 1):
        event_id = (name if rows == 1 else f"{name}-{number}") + suffix
        yield event_id if name and len(event_id) <= MAX_EVENT_ID else ""
