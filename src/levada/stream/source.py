"""The topic that a sink reads: which topic it is, where it begins and ends, and its messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline

_TIMEOUT: Final = 10.0
_NAP_SECONDS: Final = 0.01

log = structlog.get_logger(__name__)


class SourceError(UserError):
    """Kafka does not give what the sink needs now; trying again may help."""


@dataclass(frozen=True)
class Topic:
    """A topic as Kafka has it: deleting and creating it again gives another id."""

    id: str
    partitions: tuple[int, ...]


class Source:
    """A consumer that is told what to read: no group decides, the table does."""

    def __init__(self, kafka: KafkaSettings, pipeline: Pipeline) -> None:
        self._topic = pipeline.topic_name
        client = {
            **kafka.client(),
            "client.id": f"levada-sink-{pipeline.name}",
            "logger": logging.getLogger("librdkafka"),
        }
        self._admin = AdminClient(dict(client))
        self._consumer = Consumer(
            {
                **client,
                # The group owns nothing; offsets are committed to it so that tools can show the lag.
                "group.id": f"levada-sink-{pipeline.name}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                # Where to go on is decided at the start, by name; a consumer that jumps by itself would skip events.
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "allow.auto.create.topics": False,
                # What is fetched ahead of the buffer; the defaults take hundreds of megabytes in a backlog.
                "queued.min.messages": 50_000,
                "queued.max.messages.kbytes": 32_768,
                "fetch.max.bytes": 8 * 1024 * 1024,
                # How long a full queue is left alone. A batch empties it within 50 ms; after the default second a sink
                # in a backlog would stand idle half of the time.
                "fetch.queue.backoff.ms": 50,
                "reconnect.backoff.ms": 500,
                "reconnect.backoff.max.ms": 2_000,
            }
        )

    def topic(self) -> Topic:
        """The topic's id and partitions.

        Raises:
            SourceError: there is no such topic, or Kafka does not answer.
        """
        try:
            description = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=_TIMEOUT)[
                self._topic
            ].result(_TIMEOUT + 1)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise SourceError(f"topic {self._topic} does not exist: run levada topics apply") from error
            raise SourceError(f"topic {self._topic} cannot be described: {error.args[0].str()}") from error
        return Topic(str(description.topic_id), tuple(sorted(part.id for part in description.partitions)))

    def bounds(self, partitions: tuple[int, ...]) -> dict[int, tuple[int, int]]:
        """Partition → (first offset that Kafka still has, offset of the next event to come)."""
        try:
            return {
                partition: self._consumer.get_watermark_offsets(
                    TopicPartition(self._topic, partition), timeout=_TIMEOUT, cached=False
                )
                for partition in partitions
            }
        except KafkaException as error:
            raise SourceError(f"topic {self._topic}: offsets cannot be read: {error.args[0].str()}") from error

    def since(self, partition: int, moment: float) -> int:
        """Offset of the first event that was sent at a time (seconds since 1970) or later; the end if there is none."""
        place = TopicPartition(self._topic, partition, int(moment * 1000))
        try:
            (found,) = self._consumer.offsets_for_times([place], timeout=_TIMEOUT)
        except KafkaException as error:
            raise SourceError(f"topic {self._topic}: offsets cannot be read: {error.args[0].str()}") from error
        if found.error is not None:
            raise SourceError(f"topic {self._topic}, partition {partition}: {found.error.str()}")
        return self.bounds((partition,))[partition][1] if found.offset < 0 else int(found.offset)

    def read_from(self, start: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on; what was fetched before is dropped."""
        self._consumer.assign([TopicPartition(self._topic, partition, offset) for partition, offset in start.items()])

    def poll(self, count: int, seconds: float) -> list[Message]:
        """Up to ``count`` messages that came within ``seconds``.

        Raises:
            SourceError: Kafka refused a fetch; reading on could skip events.
        """
        deadline = time.monotonic() + seconds
        messages: list[Message] = self._consumer.consume(count, 0)
        # The client's own wait is for a time of the wall clock: were that set back by hours, it would last hours.
        while len(messages) < count and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))
            messages += self._consumer.consume(count - len(messages), 0)
        if any(map(Message.error, messages)):
            told = next(message for message in messages if message.error() is not None)
            raise SourceError(f"topic {self._topic}, partition {told.partition()}: {told.error().str()}")
        return messages

    def end(self, partition: int) -> int | None:
        """Offset of the next event to come as of the last fetch, without asking Kafka; None before the first."""
        high: int = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)[1]
        return None if high == OFFSET_INVALID else high

    def show_progress(self, reached: Mapping[int, int]) -> None:
        """Commit offsets to the consumer group, for those who watch its lag; the sink itself never reads them."""
        offsets: list[Any] = [TopicPartition(self._topic, partition, offset) for partition, offset in reached.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.warning("group offsets not committed", topic=self._topic, error=error.args[0].str())

    def close(self) -> None:
        """Give back the connections."""
        self._consumer.close()
