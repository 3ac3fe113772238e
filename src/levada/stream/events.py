"""From Kafka messages to rows, or to dead letters: decode, check, know the event and its time.

There are two ways, and they agree. The *exact* one takes one message, tells every reason, and is slow. The *fast* one
takes thousands: a typed decoder, then whole columns. It never refuses an event; whatever it does not accept goes the
exact way, so reasons are exact and only what is accepted must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message
from numpy.typing import NDArray

from levada import event, lake, rules
from levada.event import MAX_EVENT_ID, EventError
from levada.pipeline import Pipeline, seconds
from levada.stream import vector
from levada.stream.dead import DeadLetter

LATE: Final = "late"
"""The rule of a dead letter whose event lies further back than ``lake.lateHorizon``."""

_MICROSECOND: Final = timedelta(microseconds=1)
_CLOCK: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UTC: Final = pa.timestamp("us", tz="UTC")
_YEARS: Final = (
    pa.scalar(datetime(2, 1, 1, tzinfo=UTC), _UTC),
    pa.scalar(datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), _UTC),
)
_SHORTEST_TIMESTAMP: Final = 20
_TYPES: Final[dict[str, Any]] = {
    "string": str,
    "long": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "double": float,
    "boolean": bool,
    "timestamp": str,
}


@dataclass(frozen=True)
class Event:
    """An event that is fit for the lake."""

    id: str
    time: datetime
    row: dict[str, Any]
    """Column → value, as :func:`levada.lake.arrow_schema` has them."""


@dataclass(frozen=True)
class Decoded:
    """What a batch of messages holds, in the order of the messages."""

    rows: pa.Table
    ids: list[bytes]
    """The event id of each row."""
    letters: list[DeadLetter]
    reached: dict[int, int]
    """Partition → the offset behind its last message."""
    size: int
    """Bytes of all values."""


@dataclass(frozen=True)
class _Origins:
    """Where each of many messages comes from."""

    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @staticmethod
    def of(messages: Sequence[Message]) -> _Origins:
        count = len(messages)
        return _Origins(
            np.fromiter(map(Message.partition, messages), np.int32, count),
            np.fromiter(map(Message.offset, messages), np.int64, count),
        )

    def at(self, places: NDArray[np.intp]) -> _Origins:
        return _Origins(self.partitions[places], self.offsets[places])

    def reached(self) -> dict[int, int]:
        return {
            partition: int(self.offsets[self.partitions == partition].max()) + 1
            for partition in np.unique(self.partitions).tolist()
        }


class Decoder:
    """Decodes the messages of one topic incarnation."""

    def __init__(self, pipeline: Pipeline, topic_id: str) -> None:
        self._pipeline = pipeline
        self._topic_id = topic_id
        self._checker = event.Checker(pipeline, sealed=True)
        self._schema = lake.arrow_schema(pipeline)
        self._types = pipeline.types
        self._retention = timedelta(seconds=seconds(pipeline.topic.retention))
        self._horizon = timedelta(seconds=seconds(pipeline.lake.late_horizon))
        self._ahead = timedelta(seconds=seconds(pipeline.lake.max_ahead))
        self._parse = msgspec.json.Decoder(_struct(pipeline)).decode
        visible = {name: field for name, field in pipeline.fields.items() if name not in pipeline.sensitive}
        self._one_of = {
            name: pa.array(field.one_of, pa.string()) for name, field in visible.items() if field.one_of is not None
        }
        parsed = [rules.parse(field.rule, self._types) for field in pipeline.fields.values() if field.rule is not None]
        self._rules = [rule for rule in parsed if not rule.columns & pipeline.sensitive]

    def exact(self, message: Message, now: datetime) -> Event | DeadLetter:
        """The event in a message, or the letter that says why there is none."""
        event_id = self._place(message)
        headers = dict(message.headers() or ())
        try:
            if (given := headers.get("event-id")) is not None:
                event_id = _event_id(given)
            time = None if self._pipeline.event_time else _event_time(message, headers.get("event-time"), now)
            record = self._checker.decode(unquote(message.value() or b""))
            if time is None:
                time = record[str(self._pipeline.event_time)]
            arrival = self._arrival(message, now)
            if time > arrival + self._ahead:
                raise _BadHeaderError("event-time")
            if time < arrival - self._horizon:
                raise _BadHeaderError("event-time", LATE)
        except _BadHeaderError as error:
            return DeadLetter(message, event_id, error.rule, error.header)
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

    def decode(self, messages: Sequence[Message], now: datetime) -> Decoded:
        """Rows and letters of many messages at once."""
        values = list(map(Message.value, messages))
        size = sum(map(len, filter(None, values)))
        parsed, refused = self._parsed(values)
        origins = _Origins.of(messages)
        letters: list[DeadLetter] = []
        if not refused:
            rows, ids, good = self._columns(messages, origins, parsed, now)
            if good.all():
                return Decoded(rows, ids, letters, origins.reached(), size)
            places = np.arange(len(messages))
        else:
            fast = np.ones(len(messages), np.bool_)
            fast[refused] = False
            places = np.flatnonzero(fast)
            kept = [messages[place] for place in places.tolist()]
            structs = [struct for struct in parsed if struct is not None]
            rows, ids, good = self._columns(kept, origins.at(places), structs, now)
        # Some go the exact way; those that it accepts are put back in their places.
        ids = [event_id for event_id, is_good in zip(ids, good.tolist(), strict=True) if is_good]
        rows, places, again = rows.filter(pa.array(good)), places[good], places[~good]
        exact: list[tuple[int, Event]] = []
        for place in sorted([*refused, *again.tolist()]):
            found = self.exact(messages[place], now)
            if isinstance(found, Event):
                exact.append((place, found))
            else:
                letters.append(found)
        if exact:
            rows = pa.concat_tables([rows, to_table([found.row for _, found in exact], self._schema)])
            order = np.argsort(np.concatenate([places, [place for place, _ in exact]]), kind="stable")
            rows = rows.take(pa.array(order))
            ids += [found.id.encode() for _, found in exact]
            ids = [ids[place] for place in order.tolist()]
        return Decoded(rows, ids, letters, origins.reached(), size)

    def _place(self, message: Message) -> str:
        # Who produces without our headers has no event id; the place in the log names the event as well.
        return f"{self._topic_id}/{message.partition()}/{message.offset()}"

    def _arrival(self, message: Message, now: datetime) -> datetime:
        """When Kafka got the event. Lateness is measured from it: a sink that was down must not make events late."""
        kind, milliseconds = message.timestamp()
        if kind == TIMESTAMP_NOT_AVAILABLE:
            return now
        earliest, latest = (_ms(moment) for moment in self._believable(now))
        return _EPOCH + timedelta(milliseconds=min(max(milliseconds, earliest), latest))

    def _believable(self, now: datetime) -> tuple[datetime, datetime]:
        """When Kafka can have got what it has, but for a day by which this machine's clock may be wrong."""
        return now - self._retention - _CLOCK, now + _CLOCK

    def _parsed(self, values: list[bytes | None]) -> tuple[list[Any], list[int]]:
        """A struct a value, None where the typed decoder refuses; and the places of the refused."""
        parsed: list[Any] = []
        refused: list[int] = []
        rest = iter(values)
        while True:
            try:
                parsed.extend(map(self._parse, rest))  # type: ignore[arg-type]  # keeps what came before an error
            except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
                refused.append(len(parsed))
                parsed.append(None)
            else:
                return parsed, refused

    def _columns(
        self, messages: Sequence[Message], origins: _Origins, structs: list[Any], now: datetime
    ) -> tuple[pa.Table, list[bytes], NDArray[np.bool_]]:
        """Columns of all these messages, and which of them are events beyond doubt."""
        count = len(messages)
        if not count:
            return self._schema.empty_table(), [], np.ones(0, np.bool_)
        good = np.ones(count, np.bool_)
        columns: dict[str, Any] = {}
        values = zip(*map(msgspec.structs.astuple, structs), strict=True)
        for (name, kind), column in zip(self._types.items(), values, strict=True):
            if kind == "timestamp":
                text = pa.array(column, pa.string())
                columns[name] = _timestamps(text)
                good &= _all_true(pc.or_(pc.is_null(text), pc.is_valid(columns[name])))
            else:
                columns[name] = pa.array(column, self._schema.field(name).type)
        for name, allowed in self._one_of.items():
            good &= _all_true(pc.or_(pc.is_null(columns[name]), pc.is_in(columns[name], value_set=allowed)))
        for rule in self._rules:
            good &= _all_true(vector.passes(rule, columns, count))
        given, stated = _stated(messages)
        ids = [own for own in given if own is not None]
        if len(ids) < count:
            ids = [
                self._place(message).encode() if own is None else own
                for own, message in zip(given, messages, strict=True)
            ]
        texts = _texts(ids)
        length = pc.utf8_length(texts)
        good &= _all_true(pc.fill_null(pc.and_(pc.greater(length, 0), pc.less_equal(length, MAX_EVENT_ID)), False))
        times, in_bounds = self._times(messages, stated, columns, now)
        good &= in_bounds
        origin = {
            "_event_id": pc.fill_null(texts, ""),
            "_event_time": pc.fill_null(times, _YEARS[0]),
            "_ingested_at": pa.repeat(pa.scalar(now, _UTC), count),
            "_topic": pa.repeat(pa.scalar(messages[0].topic(), pa.string()), count),
            "_partition": pa.array(origins.partitions),
            "_offset": pa.array(origins.offsets),
        }
        return pa.Table.from_arrays([*columns.values(), *origin.values()], schema=self._schema), ids, good

    def _times(
        self, messages: Sequence[Message], stated: Sequence[bytes | None], columns: dict[str, Any], now: datetime
    ) -> tuple[Any, NDArray[np.bool_]]:
        """The time of each event, and whether it is one and lies within the bounds."""
        kind, milliseconds = zip(*map(Message.timestamp, messages), strict=True)
        kinds = np.array(kind, np.int64)
        arrival = np.array(milliseconds, np.int64).clip(-_FAR_MS, _FAR_MS) * 1000
        created = pa.array(arrival, pa.int64()).cast(_UTC)
        earliest, latest = (_ms(moment) * 1000 for moment in self._believable(now))
        arrival = np.where(kinds == TIMESTAMP_NOT_AVAILABLE, _microseconds(now), arrival.clip(earliest, latest))
        if self._pipeline.event_time is not None:
            times = columns[self._pipeline.event_time]
        else:
            times = _timestamps(_texts(stated))
            if None in stated:
                missing = pa.array([own is None for own in stated])
                known = pa.array(kinds != TIMESTAMP_NOT_AVAILABLE)
                times = pc.if_else(missing, pc.if_else(known, created, pa.scalar(now, _UTC)), times)
        numbers = pc.fill_null(times.cast(pa.int64()), -_FAR_MS * 1000).to_numpy(zero_copy_only=False)
        in_bounds = (numbers <= arrival + self._ahead // _MICROSECOND) & (
            numbers >= arrival - self._horizon // _MICROSECOND
        )
        return times, in_bounds & _all_true(pc.is_valid(times))


def _stated(messages: Sequence[Message]) -> tuple[Sequence[bytes | None], Sequence[bytes | None]]:
    """The event id and the event time that the headers of each message state."""
    headers = list(map(Message.headers, messages))
    try:
        # The collector's, which never differ: to compare four names is half of what a dict of them costs.
        ours = [
            (event_id, event_time)
            for (a, event_id), (b, event_time), (c, _), (d, _) in headers
            if a == "event-id" and b == "event-time" and c == "pipeline" and d == "schema"
        ]
    except (TypeError, ValueError):
        ours = []
    if len(ours) == len(headers):
        event_ids, event_times = zip(*ours, strict=True)
        return event_ids, event_times
    named = [dict(own or ()) for own in headers]
    return [own.get("event-id") for own in named], [own.get("event-time") for own in named]


def to_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table; column by column it is four times as fast as ``Table.from_pylist``."""
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


_FAR_MS: Final = 2**53 // 1000  # beyond any year there is, and far from what 64 bits of microseconds can hold


def _struct(pipeline: Pipeline) -> type[msgspec.Struct]:
    """The declared fields as a type; its attributes have names of their own, because a field may be a keyword."""
    needed, optional = [], []
    for number, (name, field) in enumerate(pipeline.fields.items()):
        kind = _TYPES[field.type]
        if field.required:
            needed.append((f"f{number}", kind, msgspec.field(name=name)))
        else:
            optional.append((f"f{number}", kind | None if kind is not _TYPES["long"] else _OptionalLong,
                             msgspec.field(name=name, default=None)))  # fmt: skip
    fields = sorted([*needed, *optional], key=lambda entry: int(entry[0][1:]))
    return msgspec.defstruct("Event", fields, forbid_unknown_fields=True, gc=False, kw_only=True)


_OptionalLong: Final = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _all_true(mask: Any) -> NDArray[np.bool_]:
    numbers: NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False).astype(np.bool_, copy=False)
    return numbers


def _texts(values: Sequence[bytes | None]) -> Any:
    """Bytes as text; null where they are missing or not UTF-8."""
    array = pa.array(values, pa.binary())
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _timestamps(texts: Any) -> Any:
    """RFC 3339 text as instants; null where it is none, or where Arrow reads less than :func:`event.timestamp`."""
    try:
        times = pc.cast(texts, _UTC)
    except pa.ArrowInvalid:
        return pa.array([_timestamp(text) for text in texts.to_pylist()], _UTC)
    # Arrow also takes stamps without seconds, and the year 0, which datetime does not have.
    right = pc.and_(
        pc.greater_equal(pc.utf8_length(texts), _SHORTEST_TIMESTAMP),
        pc.and_(pc.greater_equal(times, _YEARS[0]), pc.less_equal(times, _YEARS[1])),
    )
    return pc.if_else(right, times, pa.scalar(None, _UTC))


def _timestamp(text: str | None) -> datetime | None:
    try:
        return None if text is None else event.timestamp(text)
    except (ValueError, OverflowError):
        return None


class _BadHeaderError(ValueError):
    def __init__(self, header: str, rule: str | None = None) -> None:
        super().__init__(header)
        self.header = header
        self.rule = rule or header


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
            return event.timestamp(header.decode())
        if kind != TIMESTAMP_NOT_AVAILABLE:
            return _EPOCH + timedelta(milliseconds=milliseconds)
        return now
    except (ValueError, OverflowError, OSError):
        raise _BadHeaderError("event-time") from None
