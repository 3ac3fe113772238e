"""Events that are not fit for the lake: to the dead-letter topic, with the raw bytes and what was wrong."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, KafkaException, Message, Producer

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline

# A dead letter is its event plus headers, and an event may be as large as the topic allows (10 MiB).
MAX_BYTES: Final = 10 * 1024 * 1024 + 65_536
REPLAYED: Final = "replayed-at"
"""The header that makes a message of the dead-letter topic the record of a replay."""
TRUNCATED: Final = "truncated-from"
"""The header of a letter that does not hold its whole event; it tells how many bytes the event has."""
KEPT_BYTES: Final = 16_384
"""So many bytes are left of an event whose letter is larger than Kafka takes."""
_FLUSH_SECONDS: Final = 15.0
_LAST_MS: Final = 253_402_300_799_000  # the end of the year 9999
# What a replay needs of the event's own headers.
_KEPT: Final = ("event-time", "schema")

Headers = list[tuple[str, str | bytes | None]]

log = structlog.get_logger(__name__)


class DeadLetterError(UserError):
    """Dead letters that Kafka did not take; the offsets they came from must not be committed."""


@dataclass(frozen=True)
class DeadLetter:
    """One refused event: its place in the topic is in the message itself."""

    message: Message
    event_id: str
    rule: str
    field: str


class DeadLetters:
    """The producer of ``<topic>.dead``.

    Delivery is at least once: after a crash a letter may come again, with the same ``topic-id``, ``partition`` and
    ``offset`` headers. A letter that is larger than Kafka takes (a limit that was lowered, an event with long headers)
    is sent with the first ``KEPT_BYTES`` bytes of its event, and says so: the sink neither skips it nor stops for it.
    """

    def __init__(self, kafka: KafkaSettings, pipeline: Pipeline) -> None:
        self._pipeline = pipeline.name
        self._topic = pipeline.dead_topic
        self._failed: KafkaError | None = None
        self._refused: list[tuple[Headers, bytes | None, bytes | None]] = []
        """Headers, key and bytes of what is sent instead of letters that were too large."""
        self._producer = Producer(
            {
                **kafka.producer(),
                "client.id": f"levada-sink-{pipeline.name}",
                "logger": logging.getLogger("librdkafka"),
                "message.max.bytes": MAX_BYTES,
                "message.timeout.ms": 10_000,
                "queue.buffering.max.kbytes": 65_536,
            }
        )

    def send(self, letter: DeadLetter, topic_id: str) -> None:
        """Queue one letter of an event of this topic; :meth:`flush` tells whether it arrived."""
        message = letter.message
        headers: Headers = [
            ("event-id", letter.event_id),
            ("rule", letter.rule),
            ("field", letter.field),
            ("topic", message.topic()),
            ("topic-id", topic_id),
            ("partition", str(message.partition())),
            ("offset", str(message.offset())),
            ("pipeline", self._pipeline),
        ]
        kind, milliseconds = message.timestamp()
        if kind != TIMESTAMP_NOT_AVAILABLE and 0 <= milliseconds < _LAST_MS:
            arrived = datetime.fromtimestamp(milliseconds / 1000, UTC)
            headers.append(("arrived-at", arrived.isoformat(timespec="milliseconds")))
        given = dict(message.headers() or ())
        kept: Headers = [(name, given[name]) for name in _KEPT if given.get(name) is not None]
        report = functools.partial(self._delivered, headers, kept)  # Kafka's own has no headers
        try:
            self._produce(message.value(), message.key(), headers + kept, report)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            self._refuse(headers, kept, message.key(), message.value())

    def _produce(
        self,
        value: bytes | None,
        key: bytes | None,
        headers: Headers,
        report: Callable[[KafkaError | None, Message], None],
    ) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key, headers=headers, on_delivery=report)
            except BufferError:
                # Thousands of bad events at once: hand over some before queueing more.
                self._settle()
                continue
            self._producer.poll(0)
            return

    def flush(self) -> None:
        """Return once Kafka has acknowledged every letter.

        Raises:
            DeadLetterError: it did not, in time.
        """
        self._settle()
        while self._refused:
            # Each by itself: Kafka's limit is that of a batch.
            headers, key, value = self._refused.pop()
            try:
                self._produce(value, key, headers, self._reported)
            except KafkaException as error:
                self._failed = error.args[0]
            self._settle()

    def _settle(self) -> None:
        left = self._producer.flush(_FLUSH_SECONDS)
        failed, self._failed = self._failed, None
        if failed is not None:
            hint = (
                ": run levada topics apply"
                if failed.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
                else ""
            )
            raise DeadLetterError(f"dead letters for {self._topic} were not taken: {failed.str()}{hint}")
        if left:
            raise DeadLetterError(f"{left} dead letters for {self._topic} were not acknowledged")

    def close(self) -> None:
        """Drop what is queued: its offsets were not committed, it will be read again."""
        try:
            self._producer.purge()
            self._producer.flush(1.0)
        except KafkaException:
            return

    def _delivered(self, headers: Headers, kept: Headers, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._refuse(headers, kept, message.key(), message.value())
        else:
            self._reported(error, message)

    def _reported(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed = error

    def _refuse(self, headers: Headers, kept: Headers, key: bytes | None, value: bytes | None) -> None:
        """Keep a letter that is too large, cut; whole if it was small and only came in a batch that was too large."""
        if len(value or b"") + len(key or b"") + sum(len(text or b"") for _, text in kept) <= KEPT_BYTES:
            self._refused.append((headers + kept, key, value))
            return
        told = dict(headers)
        log.warning(
            "a dead letter is larger than Kafka takes: its event is cut",
            topic=told["topic"],
            partition=told["partition"],
            offset=told["offset"],
            bytes=len(value or b""),
        )
        # Without its key and time, which may be what is large and of use in a replay only.
        cut = None if value is None else value[:KEPT_BYTES]
        self._refused.append(([*headers, (TRUNCATED, str(len(value or b"")))], None, cut))
