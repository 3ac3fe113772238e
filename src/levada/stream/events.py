"""From a Kafka message to a row, or to a dead letter: decode, check, know the event and its time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from levada import event
from levada.event import EventError
from levada.pipeline import Pipeline
from levada.stream.dead import DeadLetter

MAX_AHEAD: Final = timedelta(hours=1)
"""How far an event's stamp may lie in the future: beyond it, a wrong clock would open partitions of years to come."""
MAX_EVENT_ID: Final = 64


@dataclass(frozen=True)
class Event:
    """An event that is fit for the lake."""

    id: str
    time: datetime
    row: dict[str, Any]
    """Column → value, as :func:`levada.lake.arrow_schema` has them."""


class Decoder:
    """Decodes the messages of one topic incarnation."""

    def __init__(self, pipeline: Pipeline, topic_id: str) -> None:
        self._checker = event.Checker(pipeline)
        self._topic_id = topic_id

    def decode(self, message: Message, now: datetime) -> Event | DeadLetter:
        """The event in a message, or the letter that says why there is none."""
        # Who produces without our headers has no event id; the place in the log names the event as well.
        event_id = f"{self._topic_id}/{message.partition()}/{message.offset()}"
        headers = dict(message.headers() or ())
        try:
            if (given := headers.get("event-id")) is not None:
                event_id = _event_id(given)
            time = _event_time(message, headers.get("event-time"), now)
            record = self._checker.decode(unquote(message.value() or b""))
        except _BadHeaderError as error:
            return DeadLetter(message, event_id, error.header, error.header)
        except EventError as error:
            first = error.violations[0]
            return DeadLetter(message, event_id, first.rule, first.field[:MAX_EVENT_ID])
        record |= {
            "_event_id": event_id,
            "_event_time": time,
            "_ingested_at": now,
            "_topic": message.topic(),
            "_partition": message.partition(),
            "_offset": message.offset(),
        }
        return Event(event_id, time, record)


class _BadHeaderError(ValueError):
    def __init__(self, header: str) -> None:
        super().__init__(header)
        self.header = header


def unquote(raw: bytes) -> bytes:
    """The JSON inside a JSON string, which is how some producers wrap an event; anything else as it is."""
    if not raw.lstrip().startswith(b'"'):
        return raw
    try:
        inner = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw
    return inner.encode() if isinstance(inner, str) else raw


def _event_id(header: bytes) -> str:
    try:
        text = header.decode()
    except UnicodeDecodeError:
        raise _BadHeaderError("event-id") from None
    if not 0 < len(text) <= MAX_EVENT_ID:
        raise _BadHeaderError("event-id")
    return text


def _event_time(message: Message, header: bytes | None, now: datetime) -> datetime:
    kind, milliseconds = message.timestamp()
    try:
        if header is not None:
            time = event.timestamp(header.decode())
        elif kind != TIMESTAMP_NOT_AVAILABLE:
            time = datetime.fromtimestamp(milliseconds / 1000, UTC)
        else:
            time = now
    except (ValueError, OverflowError, OSError):
        raise _BadHeaderError("event-time") from None
    if time > now + MAX_AHEAD:
        raise _BadHeaderError("event-time")
    return time
