"""Events that a screen set aside: what they are, and what became of them.

The review topic is the record: an event stays in it as the collector put it there, and each decision is a message
behind it, in the same partition and under the same event id. Nothing is ever changed or taken away before its time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline

_SECONDS: Final = 15.0
_WAIT_SECONDS: Final = 0.2
_MAX_BYTES: Final = 10 * 1024 * 1024 + 65_536
_OF_THE_SCREEN: Final = frozenset(("screen", "reason", "decided-at"))

State = Literal["waiting", "released", "rejected"]


class ReviewError(UserError):
    """A decision that cannot be made or recorded; the message says why."""


@dataclass(frozen=True)
class Decision:
    """What was decided of an event."""

    state: Literal["released", "rejected"]
    at: str
    """RFC 3339, UTC."""
    by: str
    note: str


@dataclass(frozen=True)
class Held:
    """An event that was set aside; of several with one event id it is the first."""

    partition: int
    offset: int
    event_id: str
    since: str
    screens: str
    """Names, joined by commas."""
    reason: str
    message: Message
    decisions: tuple[Decision, ...]
    """The first is the one that holds: two people may have decided at once."""

    @property
    def state(self) -> State:
        """What became of it."""
        return self.decisions[0].state if self.decisions else "waiting"


class Reviews:
    """The review topic of one pipeline.

    Raises:
        ReviewError: the pipeline has no screen, hence no such topic.
    """

    def __init__(self, kafka: KafkaSettings, pipeline: Pipeline) -> None:
        if not pipeline.screen:
            raise ReviewError(f"pipeline {pipeline.name} declares no screen, so nothing of it is set aside")
        self._client = {**kafka.client(), "logger": logging.getLogger("librdkafka")}
        self._pipeline = pipeline
        self._topic = pipeline.review_topic

    def held(self) -> list[Held]:
        """Every event that was set aside and is still kept, oldest first.

        Raises:
            ReviewError: Kafka does not answer, or has no such topic.
        """
        events: dict[str, Message] = {}
        decisions: dict[str, list[Decision]] = {}
        for message in self._messages():
            headers = _headers(message)
            event_id = headers.get("event-id", "")
            match headers.get("decision"):
                case "released" | "rejected" as state:
                    decision = Decision(
                        state, headers["decided-at"], headers.get("decided-by", ""), headers.get("note", "")
                    )
                    decisions.setdefault(event_id, []).append(decision)
                case _:
                    events.setdefault(event_id, message)
        held = [_held(event_id, message, decisions.get(event_id, [])) for event_id, message in events.items()]
        return sorted(held, key=lambda each: each.since)

    def decide(
        self, event_ids: Iterable[str], state: Literal["released", "rejected"], *, by: str, note: str
    ) -> list[Held]:
        """Release events into the topic of the pipeline, or reject them; the events as they were.

        A released event goes under its own event id, key and headers, and its decision is recorded after Kafka has it:
        if this is cut off in between, releasing again leaves one row.

        Raises:
            ReviewError: an id is not known or was decided before, in which case nothing is done; or Kafka did not take
                a message.
        """
        held = {each.event_id: each for each in self.held()}
        wanted = list(dict.fromkeys(event_ids))
        for event_id in wanted:
            if event_id not in held:
                raise ReviewError(f"{self._topic} holds no event {event_id}")
            if (each := held[event_id]).decisions:
                first = each.decisions[0]
                raise ReviewError(f"event {event_id} was {first.state} by {first.by or 'nobody named'} at {first.at}")
        if state == "released":
            self._produce([self._event(held[event_id]) for event_id in wanted])
        self._produce([self._decision(held[event_id], state, by, note) for event_id in wanted])
        return [held[event_id] for event_id in wanted]

    def _event(self, held: Held) -> dict[str, Any]:
        message = held.message
        headers = [(name, value) for name, value in message.headers() or [] if name not in _OF_THE_SCREEN]
        return {
            "topic": self._pipeline.topic_name,
            "value": message.value(),
            "key": message.key(),
            "headers": headers,
        }

    def _decision(self, held: Held, state: str, by: str, note: str) -> dict[str, Any]:
        headers = {
            "event-id": held.event_id,
            "pipeline": self._pipeline.name,
            "decision": state,
            "decided-at": datetime.now(UTC).isoformat(),
            "decided-by": by,
            "note": note,
        }
        return {
            "topic": self._topic,
            "partition": held.partition,
            "value": b"",
            "key": held.message.key(),
            "headers": list(headers.items()),
        }

    def _produce(self, messages: list[dict[str, Any]]) -> None:
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        config = {
            **self._client,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "message.max.bytes": _MAX_BYTES,
            "message.timeout.ms": int(_SECONDS * 1000),
            "allow.auto.create.topics": False,
        }
        producer = Producer(config)
        for message in messages:
            while True:
                try:
                    producer.produce(**message, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
        left = producer.flush(_SECONDS)
        if failed or left:
            why = failed[0].str() if failed else "no acknowledgement in time"
            raise ReviewError(f"Kafka did not take {len(failed) + left} of {len(messages)} messages: {why}")

    def _messages(self) -> list[Message]:
        """All there is in the topic now."""
        consumer = Consumer({**self._client, "group.id": f"levada-review-{self._pipeline.name}"})
        try:
            listed = consumer.list_topics(self._topic, timeout=_SECONDS).topics[self._topic]
            if listed.error is not None:
                raise ReviewError(f"topic {self._topic} does not exist: run levada topics apply")
            left: dict[int, int] = {}
            for partition in listed.partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=_SECONDS)
                if high > low:
                    left[partition] = high
            consumer.assign([TopicPartition(self._topic, partition, OFFSET_BEGINNING) for partition in left])
            found: list[Message] = []
            deadline = time.monotonic() + _SECONDS
            while left:
                batch = consumer.consume(1000, _WAIT_SECONDS)
                if batch:
                    deadline = time.monotonic() + _SECONDS
                elif time.monotonic() > deadline:
                    raise ReviewError(f"topic {self._topic} cannot be read: Kafka does not answer")
                for message in batch:
                    if message.error() is not None:
                        raise KafkaException(message.error())
                    end = left.get(message.partition(), 0)
                    if message.offset() < end:
                        found.append(message)
                    if message.offset() + 1 >= end:
                        left.pop(message.partition(), None)
            return found
        except KafkaException as error:
            raise ReviewError(f"topic {self._topic} cannot be read: {error.args[0].str()}") from error
        finally:
            consumer.close()


def _headers(message: Message) -> dict[str, str]:
    return {name: (value or b"").decode(errors="replace") for name, value in message.headers() or []}


def _held(event_id: str, message: Message, decisions: list[Decision]) -> Held:
    headers = _headers(message)
    return Held(
        partition=message.partition(),
        offset=message.offset(),
        event_id=event_id,
        since=headers.get("decided-at", ""),
        screens=headers.get("screen", ""),
        reason=headers.get("reason", ""),
        message=message,
        decisions=tuple(sorted(decisions, key=lambda decision: decision.at)),
    )
