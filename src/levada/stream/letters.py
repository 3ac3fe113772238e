"""Reading dead letters, and sending their events again.

The dead-letter topic is the record: a letter stays in it as the sink put it there, and each replay is a message behind
it, in the same partition. A letter may be there twice, because a sink that was killed writes it again: the place of
the event in its topic says that both are one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline
from levada.stream.dead import MAX_BYTES, REPLAYED, TRUNCATED
from levada.stream.source import Source, SourceError

_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.2
_BY_KEY: Final = -1
_BATCH: Final = 64
"""Messages in memory at once; each may have megabytes."""
_HELD_BYTES: Final = 16 * 1024 * 1024
_CHARACTERS: Final = 100_000
_NAMED: Final = 10

Place = tuple[str, int, int]
"""Topic id as the sink saw it (empty in letters without it), partition and offset of an event."""


class LettersError(UserError):
    """Letters that cannot be read or replayed; the message says why."""


@dataclass(frozen=True)
class Letter:
    """One event that was refused."""

    message: Message
    headers: tuple[tuple[str, bytes], ...]
    replayed: bool = False
    earlier: bool = False
    """Its place is one of a topic of that name that was deleted since."""

    @property
    def value(self) -> bytes | None:
        """The raw bytes of the event, or the first of them if it is :attr:`truncated`; None for a tombstone."""
        # An empty value cannot be told from none behind a client that gives both as the same.
        value: bytes | None = self.message.value()
        return value

    @property
    def key(self) -> Place:
        """What is the same in every copy of the letter."""
        return (self._text("topic-id"), int(self._text("partition")), int(self._text("offset")))

    @property
    def place(self) -> str:
        """Partition and offset of the event, as people write it."""
        return f"{self._text('partition')}/{self._text('offset')}"

    @property
    def event_id(self) -> str:
        """Id of the event, or what stands for it."""
        return self._text("event-id")

    @property
    def rule(self) -> str:
        """The rule that it broke."""
        return self._text("rule")

    @property
    def field(self) -> str:
        """The field that broke it; empty if it was the event as a whole."""
        return self._text("field")

    @property
    def truncated(self) -> bool:
        """Whether it does not hold its whole event, which was too large for a letter."""
        return any(name == TRUNCATED for name, _ in self.headers)

    @property
    def source(self) -> str:
        """Where the event itself is, as long as Kafka keeps it, and how many bytes it has, if it is truncated."""
        return (
            f"topic {self._text('topic')} (topic id {self._text('topic-id')}), partition {self._text('partition')}, "
            f"offset {self._text('offset')}, {self._text(TRUNCATED)} bytes"
        )

    @property
    def at(self) -> str:
        """When it was refused, RFC 3339, UTC."""
        return datetime.fromtimestamp(self.message.timestamp()[1] / 1000, UTC).isoformat(timespec="milliseconds")

    def _text(self, name: str) -> str:
        return dict(self.headers).get(name, b"").decode(errors="replace")


def printable(raw: str | bytes) -> str:
    """Text that a terminal shows as it is: controls, and bytes that are no text, are written as escapes."""
    text = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw
    cut = f"… ({len(text) - _CHARACTERS} more characters)" if len(text) > _CHARACTERS else ""
    shown = (
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:_CHARACTERS]
    )
    return "".join(shown) + cut


class Letters:
    """The dead-letter topic of one pipeline; needs a client that may read it and write to the topic."""

    def __init__(self, kafka: KafkaSettings, pipeline: Pipeline) -> None:
        self._kafka = kafka
        self._client = {**kafka.client(), "logger": logging.getLogger("librdkafka")}
        self._pipeline = pipeline
        self._topic = pipeline.dead_topic

    def newest(self, limit: int, rule: str | None = None) -> tuple[list[Letter], bool]:
        """The newest ``limit`` letters, newest first, each once; and whether there are older ones.

        At most ``limit`` letters are held in memory, whatever the topic has.
        """
        try:
            current = self._topic_id()
        except SourceError:
            current = ""  # There is none just now; its letters are there.
        letters: dict[Place, Letter] = {}
        more = False
        for message, is_record in self._messages():
            key = _key(message)
            if is_record:
                if key in letters:
                    letters[key] = replace(letters[key], replayed=True)
                continue
            letter = _letter(message, current)
            if rule is not None and letter.rule != rule:
                continue
            letters.pop(key, None)  # the copy that came last says when
            letters[key] = letter
            if len(letters) > limit:
                oldest = min(letters, key=lambda own: letters[own].message.timestamp()[1])
                letters.pop(oldest)
                more = True
        return sorted(letters.values(), key=lambda letter: letter.message.timestamp()[1], reverse=True), more

    def at(self, place: str) -> Letter:
        """The letter of the event at this partition and offset of the topic.

        If the topic has none, it is the newest of an earlier topic of that name.

        Raises:
            LettersError: there is none.
            SourceError: there is no such topic, or Kafka does not answer.
        """
        found, current = None, self._topic_id()
        for message, is_record in self._messages():
            if is_record or (letter := _letter(message, current)).place != place:
                continue
            if found is None or _likelier(letter) >= _likelier(found):
                found = letter
        if found is None:
            raise LettersError(f"topic {self._topic} holds no letter of {place}: see levada dead list")
        return found

    def replay(self, place: str | None = None, rule: str | None = None) -> tuple[int, int]:
        """Send events to the topic again: of one place, of one rule, or all.

        An event goes under its own id, key and time, to the partition that it had. One that was replayed before is
        left out, unless it is asked for by its place.

        Returns:
            How many there were, and how many of them were letters of an earlier topic of that name.

        Raises:
            LettersError: there is no letter of that place, Kafka did not take an event, or a letter does not hold its
                whole event (all others were sent). What Kafka took is recorded.
            SourceError: there is no such topic, or Kafka does not answer.
        """
        sender = _Sender(self._kafka, self._pipeline)
        count = earlier = 0
        truncated: list[Letter] = []
        for letter in self._waiting(rule) if place is None else [self.at(place)]:
            if letter.truncated:
                truncated.append(letter)
                continue
            sender.add(letter)
            count, earlier = count + 1, earlier + letter.earlier
        sender.flush()
        if truncated:
            told = "; ".join(letter.source for letter in truncated[:_NAMED])
            more = f"; and {len(truncated) - _NAMED} more" if len(truncated) > _NAMED else ""
            raise LettersError(
                f"{count} sent, {len(truncated)} cannot be: too large for a letter, which has only the beginning. "
                f"The event itself, as long as Kafka keeps it: {told}{more}"
            )
        return count, earlier

    def _waiting(self, rule: str | None) -> Iterator[Letter]:
        """Each event of a rule, or of any, that was not replayed yet."""
        current = self._topic_id()
        done = {_key(message) for message, is_record in self._messages() if is_record}
        for message, is_record in self._messages():
            letter = _letter(message, current)
            if not is_record and letter.key not in done and rule in (None, letter.rule):
                done.add(letter.key)
                yield letter

    def _topic_id(self) -> str:
        with closing(Source(self._kafka, self._pipeline)) as source:
            return source.topic().id

    def _messages(self) -> Iterator[tuple[Message, bool]]:
        """All there is in the topic now, and whether each is the record of a replay."""
        consumer = Consumer(
            {
                **self._client,
                "group.id": f"levada-dead-{self._pipeline.name}",
                "enable.auto.commit": False,
                "queued.max.messages.kbytes": 16_384,
            }
        )
        try:
            listed = consumer.list_topics(self._topic, timeout=_SECONDS).topics[self._topic]
            if listed.error is not None:
                raise LettersError(f"topic {self._topic} does not exist: run levada topics apply")
            left: dict[int, int] = {}
            starts = []
            for partition in listed.partitions:
                place = TopicPartition(self._topic, partition)
                low, high = consumer.get_watermark_offsets(place, timeout=_SECONDS)
                if high > low:
                    left[partition] = high
                    starts.append(TopicPartition(self._topic, partition, low))
            consumer.assign(starts)
            deadline = time.monotonic() + _SECONDS
            while left:
                batch = consumer.consume(_BATCH, _POLL_SECONDS)
                if batch:
                    deadline = time.monotonic() + _SECONDS
                elif time.monotonic() > deadline:
                    raise LettersError(f"topic {self._topic} cannot be read: Kafka does not answer")
                for message in batch:
                    if message.error() is not None:
                        raise KafkaException(message.error())
                    end = left.get(message.partition(), 0)
                    if message.offset() < end:
                        yield message, any(name == REPLAYED for name, _ in message.headers() or ())
                    if message.offset() + 1 >= end:
                        left.pop(message.partition(), None)
        except KafkaException as error:
            raise LettersError(f"topic {self._topic} cannot be read: {error.args[0].str()}") from error
        finally:
            consumer.close()


class _Sender:
    """Events first, then the records that they were sent: cut off in between, a replay again leaves one row."""

    def __init__(self, kafka: KafkaSettings, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._failed: list[KafkaError] = []
        self._held: deque[Letter] = deque()
        self._producer = Producer(
            {
                **kafka.producer(),
                "logger": logging.getLogger("librdkafka"),
                "message.max.bytes": MAX_BYTES,
                "message.timeout.ms": int(_SECONDS * 1000),
                "queue.buffering.max.kbytes": 65_536,
            }
        )

    def add(self, letter: Letter) -> None:
        """Send one event; its record comes with :meth:`flush`, or some events later."""
        given = dict(letter.headers)
        headers = {"event-id": given["event-id"], "pipeline": self._pipeline.name.encode()}
        # Else the event would be of the time at which it was sent again.
        if stamp := given.get("event-time") or given.get("arrived-at"):
            headers["event-time"] = stamp
        if schema := given.get("schema"):
            headers["schema"] = schema
        value, key = letter.message.value(), letter.message.key()
        # The topic may have fewer partitions than an earlier one had: there the key decides, as for new events.
        partition = _BY_KEY if letter.earlier else letter.key[1]
        self._produce(self._pipeline.topic_name, partition, value, key, headers)
        self._held.append(letter)
        if len(self._held) >= _BATCH or sum(len(held.value or b"") for held in self._held) >= _HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Return once Kafka has all events and their records.

        Raises:
            LettersError: it did not take them.
        """
        self._settle()
        now = datetime.now(UTC).isoformat(timespec="milliseconds").encode()
        while self._held:
            letter = self._held.popleft()
            given = dict(letter.headers)
            headers: dict[str, bytes] = {
                name: given[name] for name in ("event-id", "topic-id", "partition", "offset") if name in given
            }
            self._produce(
                self._pipeline.dead_topic, letter.message.partition(), b"", letter.message.key(),
                headers | {REPLAYED: now},
            )  # fmt: skip
        self._settle()

    def _settle(self) -> None:
        left = self._producer.flush(_SECONDS)
        if self._failed or left:
            why = self._failed[0].str() if self._failed else "no acknowledgement in time"
            raise LettersError(f"Kafka did not take {len(self._failed) + left} messages: {why}")

    def _produce(
        self, topic: str, partition: int, value: bytes | None, key: bytes | None, headers: dict[str, bytes]
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition=partition, headers=list(headers.items()), on_delivery=self._delivered
                )
            except BufferError:
                self._producer.poll(0.1)
                continue
            return

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(error)


def _headers(message: Message) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value or b"") for name, value in message.headers() or ())


def _letter(message: Message, current: str) -> Letter:
    """The letter in a message; ``current`` is the id of the topic as it is now, empty if that is not known."""
    letter = Letter(message, _headers(message))
    return replace(letter, earlier=bool(current) and letter.key[0] not in ("", current))


def _likelier(letter: Letter) -> tuple[bool, int]:
    """What decides which of the letters of one place is meant."""
    return not letter.earlier, letter.message.timestamp()[1]


def _key(message: Message) -> Place:
    return Letter(message, _headers(message)).key
