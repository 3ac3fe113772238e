"""Events that a screen set aside: what they are, and what became of them.

The review topic is the record: an event stays in it as the collector put it there, and each decision is a message
behind it, in the same partition and under the same event id. Nothing is ever changed or taken away before its time.

Two people may decide at once. Kafka puts their decisions in an order, and the first one holds: who has written one
reads on to it before acting on it. A release is two messages, ``release`` before the event goes on and ``released``
once Kafka has it, so that one that was cut off in between is seen, and done again.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline

_SECONDS: Final = 15.0
_WAIT_SECONDS: Final = 0.2
_BATCH: Final = 64
"""Messages in memory at once; each may have megabytes."""
_MAX_BYTES: Final = 10 * 1024 * 1024 + 65_536
_OF_THE_SCREEN: Final = frozenset(("screen", "reason", "decided-at"))

State = Literal["waiting", "releasing", "released", "rejected"]
Record = Literal["release", "released", "rejected"]
Place = tuple[int, int]
"""Partition and offset."""


class ReviewError(UserError):
    """A decision that cannot be made or recorded; the message says why."""


@dataclass(frozen=True)
class Decision:
    """What was decided of an event, or done about it."""

    state: Record
    """``release``: it shall go on; ``released``: Kafka has it."""
    at: str
    """RFC 3339, UTC."""
    by: str
    note: str
    place: Place


@dataclass(frozen=True)
class Held:
    """An event that was set aside, without its value; of several with one event id it is the first."""

    partition: int
    offset: int
    event_id: str
    since: str
    screens: str
    """Names, joined by commas."""
    reason: str
    decisions: tuple[Decision, ...] = ()
    """In the order that Kafka gave them. The first is the one that holds."""

    @property
    def state(self) -> State:
        """What became of it; ``releasing``: it was decided that it goes on, and not recorded that Kafka has it."""
        if not self.decisions:
            return "waiting"
        if self.decisions[0].state == "rejected":
            return "rejected"
        return "released" if any(decision.state == "released" for decision in self.decisions) else "releasing"


@dataclass
class _Log:
    """What was read of the topic. Values are left out: there may be gigabytes of them."""

    events: dict[str, Held] = field(default_factory=dict)
    decisions: dict[str, list[Decision]] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)
    """Partition → offset of the next message to read."""

    def take(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        self.reached[partition] = offset + 1
        headers = _headers(message)
        event_id, at = headers.get("event-id", ""), headers.get("decided-at", "")
        match headers.get("decision"):
            case "release" | "released" | "rejected" as state:
                decision = Decision(
                    state, at, headers.get("decided-by", ""), headers.get("note", ""), (partition, offset)
                )
                self.decisions.setdefault(event_id, []).append(decision)
            case _:
                # Both texts come from the declaration, and are the same for many events.
                screens, reason = sys.intern(headers.get("screen", "")), sys.intern(headers.get("reason", ""))
                held = Held(partition, offset, event_id, at, screens, reason)
                self.events[event_id] = min(self.events.get(event_id, held), held, key=_age)

    def of(self, event_id: str) -> Held | None:
        """The event with its decisions; None: there is no such event."""
        held = self.events.get(event_id)
        if held is None:
            return None
        # Decisions lie in the partition of the event. Only of an id that came under two keys may there be others.
        order = sorted(self.decisions.get(event_id, ()), key=lambda own: (own.place[0] != held.partition, own.place))
        return replace(held, decisions=tuple(order))


class Reviews:
    """The review topic of one pipeline.

    Raises:
        ReviewError: the pipeline has no screen, hence no such topic.
    """

    def __init__(self, kafka: KafkaSettings, pipeline: Pipeline) -> None:
        if not pipeline.screen:
            raise ReviewError(f"pipeline {pipeline.name} declares no screen, so nothing of it is set aside")
        self._kafka = kafka
        self._client = {**kafka.client(), "logger": logging.getLogger("librdkafka")}
        self._pipeline = pipeline
        self._topic = pipeline.review_topic

    def held(self) -> list[Held]:
        """Every event that was set aside and is still kept, oldest first; some hundred bytes of memory each.

        Raises:
            ReviewError: Kafka does not answer, or has no such topic.
        """
        log = self._read(_Log())
        return sorted((held for event_id in log.events if (held := log.of(event_id)) is not None), key=_age)

    def decide(
        self, event_ids: Iterable[str], state: Literal["released", "rejected"], *, by: str, note: str
    ) -> list[Held]:
        """Release events into the topic of the pipeline, or reject them; the events as they were.

        A released event goes under its own event id, key and headers, once the decision to release it is the first one
        in the topic. Of a release that was cut off only what is missing is done: if Kafka had the event already, it is
        one row still, for as long as ``lake.dedupeWindow`` says.

        Raises:
            ReviewError: an id is not known or was decided before, in which case nothing is done; somebody else decided
                at the same time and was first, in which case the other ids are done; or Kafka did not take a message.
        """
        log = self._read(_Log())
        wanted = [self._undecided(log, event_id, state) for event_id in dict.fromkeys(event_ids)]
        fresh = [held for held in wanted if not held.decisions]
        first: Record = "release" if state == "released" else "rejected"
        places = self._produce(self._record(held, first, by, note) for held in fresh)
        # What others wrote meanwhile lies before our own, or behind it.
        self._read(log)
        lost = {}
        for held, place in zip(fresh, places, strict=True):
            now = log.of(held.event_id)
            if now is not None and now.decisions and now.decisions[0].place != place:
                lost[held.event_id] = now
        ours = [held for held in wanted if held.event_id not in lost]
        if state == "released" and ours:
            self._produce(self._event(message) for message in self._messages(ours))
            self._produce(self._record(held, "released", by, note) for held in ours)
        if lost:
            raise ReviewError("\n".join(map(_decided, lost.values())))
        return wanted

    def _undecided(self, log: _Log, event_id: str, state: Literal["released", "rejected"]) -> Held:
        held = log.of(event_id)
        if held is None:
            raise ReviewError(f"{self._topic} holds no event {event_id}")
        if held.state != "waiting" and not (held.state == "releasing" and state == "released"):
            raise ReviewError(_decided(held))
        return held

    def _event(self, message: Message) -> dict[str, Any]:
        headers = [(name, value) for name, value in message.headers() or [] if name not in _OF_THE_SCREEN]
        return {
            "topic": self._pipeline.topic_name,
            "value": message.value(),
            "key": message.key(),
            "headers": headers,
        }

    def _record(self, held: Held, state: Record, by: str, note: str) -> dict[str, Any]:
        headers = {
            "event-id": held.event_id,
            "pipeline": self._pipeline.name,
            "decision": state,
            "decided-at": datetime.now(UTC).isoformat(),
            "decided-by": by,
            "note": note,
        }
        return {"topic": self._topic, "partition": held.partition, "value": b"", "headers": list(headers.items())}

    def _produce(self, messages: Iterable[dict[str, Any]]) -> list[Place]:
        """Send messages; where each of them is, once Kafka has all."""
        places: dict[int, Place] = {}
        failed: list[KafkaError] = []

        def delivered(number: int, error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.append(error)
                return
            places[number] = message.partition(), message.offset()

        config = {
            **self._kafka.producer(),
            "logger": logging.getLogger("librdkafka"),
            "message.max.bytes": _MAX_BYTES,
            "message.timeout.ms": int(_SECONDS * 1000),
            "queue.buffering.max.kbytes": 65_536,
        }
        producer, count = Producer(config), 0
        for count, message in enumerate(messages, 1):
            while True:
                try:
                    producer.produce(**message, on_delivery=partial(delivered, count))
                    break
                except BufferError:
                    producer.poll(0.1)
        left = producer.flush(_SECONDS)
        if failed or left:
            why = failed[0].str() if failed else "no acknowledgement in time"
            raise ReviewError(f"Kafka did not take {len(failed) + left} of {count} messages: {why}")
        return [places[number] for number in range(1, count + 1)]

    def _read(self, log: _Log) -> _Log:
        """Read on to what is the end of the topic now."""
        with self._consumer() as consumer:
            listed = consumer.list_topics(self._topic, timeout=_SECONDS).topics[self._topic]
            if listed.error is not None:
                raise ReviewError(f"topic {self._topic} does not exist: run levada topics apply")
            left: dict[int, int] = {}
            for partition in listed.partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=_SECONDS)
                if high > max(low, log.reached.get(partition, 0)):
                    left[partition] = high
            consumer.assign([TopicPartition(self._topic, n, log.reached.get(n, OFFSET_BEGINNING)) for n in left])
            while left:
                for message in self._next(consumer, _BATCH):
                    end = left.get(message.partition(), 0)
                    if message.offset() < end:
                        log.take(message)
                    if message.offset() + 1 >= end:
                        left.pop(message.partition(), None)
        return log

    def _messages(self, wanted: Iterable[Held]) -> Iterator[Message]:
        """These events as they are in the topic, one after another."""
        with self._consumer() as consumer:
            for held in wanted:
                consumer.assign([TopicPartition(self._topic, held.partition, held.offset)])
                (message,) = self._next(consumer, 1)
                if message.offset() != held.offset:
                    raise ReviewError(f"topic {self._topic} does not keep event {held.event_id} any longer")
                yield message

    @contextmanager
    def _consumer(self) -> Iterator[Consumer]:
        consumer = Consumer(
            {
                **self._client,
                "group.id": f"levada-review-{self._pipeline.name}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "queued.max.messages.kbytes": 16_384,
            }
        )
        try:
            yield consumer
        except KafkaException as error:
            raise ReviewError(f"topic {self._topic} cannot be read: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def _next(self, consumer: Consumer, count: int) -> list[Message]:
        """The next messages, one at least."""
        deadline = time.monotonic() + _SECONDS
        batch: list[Message] = []
        while not batch:
            batch = consumer.consume(count, _WAIT_SECONDS)
            if not batch and time.monotonic() > deadline:
                raise ReviewError(f"topic {self._topic} cannot be read: Kafka does not answer")
        for message in batch:
            if message.error() is not None:
                raise KafkaException(message.error())
        return batch


def _headers(message: Message) -> dict[str, str]:
    return {name: (value or b"").decode(errors="replace") for name, value in message.headers() or []}


def _age(held: Held) -> tuple[str, int, int]:
    return held.since, held.partition, held.offset


def _decided(held: Held) -> str:
    first = held.decisions[0]
    what = "rejected" if first.state == "rejected" else "released"
    return f"event {held.event_id} was {what} by {first.by or 'nobody named'} at {first.at}"
