"""Events that are not fit for the lake: to the dead-letter topic, with the raw bytes and what was wrong."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, KafkaException, Message, Producer

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline

# A dead letter is its event plus headers, and an event may be as large as the topic allows (10 MiB).
MAX_BYTES: Final = 10 * 1024 * 1024 + 65_536
REPLAYED: Final = "replayed-at"
"""The header that makes a message of the dead-letter topic the record of a replay."""
_FLUSH_SECONDS: Final = 15.0
_LAST_MS: Final = 253_402_300_799_000  # the end of the year 9999
# What a replay needs of the event's own headers.
_KEPT: Final = ("event-time", "schema")


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
    ``offset`` headers.
    """

    def __init__(self, kafka: KafkaSettings, pipeline: Pipeline) -> None:
        self._pipeline = pipeline.name
        self._topic = pipeline.dead_topic
        self._failed: KafkaError | None = None
        self._producer = Producer(
            {
                **kafka.client(),
                "client.id": f"levada-sink-{pipeline.name}",
                "logger": logging.getLogger("librdkafka"),
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "message.max.bytes": MAX_BYTES,
                "message.timeout.ms": 10_000,
                "queue.buffering.max.kbytes": 65_536,
                "allow.auto.create.topics": False,
            }
        )

    def send(self, letter: DeadLetter, topic_id: str) -> None:
        """Queue one letter of an event of this topic; :meth:`flush` tells whether it arrived."""
        message = letter.message
        headers: list[tuple[str, str | bytes | None]] = [
            ("event-id", letter.event_id),
            ("rule", letter.rule),
            ("field", letter.field),
            ("topic", message.topic()),
            ("topic-id", topic_id),
            ("partition", str(message.partition())),
            ("offset", str(message.offset())),
            ("pipeline", self._pipeline),
        ]
        given = dict(message.headers() or ())
        headers += [(name, given[name]) for name in _KEPT if given.get(name) is not None]
        kind, milliseconds = message.timestamp()
        if kind != TIMESTAMP_NOT_AVAILABLE and 0 <= milliseconds < _LAST_MS:
            arrived = datetime.fromtimestamp(milliseconds / 1000, UTC)
            headers.append(("arrived-at", arrived.isoformat(timespec="milliseconds")))
        while True:
            try:
                self._producer.produce(
                    self._topic, message.value(), message.key(), headers=headers, on_delivery=self._delivered
                )
            except BufferError:
                # Thousands of bad events at once: hand over some before queueing more.
                self.flush()
                continue
            self._producer.poll(0)
            return

    def flush(self) -> None:
        """Return once Kafka has acknowledged every letter.

        Raises:
            DeadLetterError: it did not, in time.
        """
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

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed = error
