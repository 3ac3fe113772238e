"""The fast way and the exact way accept the same messages and make the same rows of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa
from confluent_kafka import Message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from levada import event, lake
from levada.pipeline import parse_pipeline
from levada.stream.dead import DeadLetter
from levada.stream.events import Decoder, Event, _timestamps

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ENTRY: dict[str, Any] = {
    "fields": {
        "n": {"type": "long", "rule": "n BETWEEN -5 AND 9007199254740993"},
        "x": {"type": "double", "required": False, "rule": "x IS NULL OR x * 2 < 1e300"},
        "class": {"type": "string", "oneOf": ["a", "é", ""], "required": False},
        "k": {"type": "long", "required": False},
        "b": {"type": "boolean", "required": False},
        "at": {"type": "timestamp", "required": False},
        "pin": {"type": "string", "sensitive": "hmac", "rule": "REGEXP(pin, '^[0-9]{4}$')", "required": False},
        "s": {"type": "string", "required": False, "rule": "s IS NULL OR s NOT LIKE '%x!%%' ESCAPE '!'"},
    },
    "lake": {"maxAhead": "1h", "lateHorizon": "2d"},
}
PIPELINE = parse_pipeline(ENTRY, "p")
DECODER = Decoder(PIPELINE, "topic-1")
BY_FIELD = Decoder(
    parse_pipeline({"fields": {"n": {"type": "long"}, "at": {"type": "timestamp"}}, "eventTime": "at"}, "p"), "t"
)
SCHEMA = lake.arrow_schema(PIPELINE)

STAMPS = (
    st.sampled_from(
        [
            "2026-11-23T12:00:00Z",
            "2026-11-23T13:00:00Z",
            "2026-11-23T13:00:00.001Z",
            "2026-11-21T12:00:00Z",
            "2026-11-21T11:59:59.999999Z",
            "2026-11-23T21:00:00+09:00",
            "2026-11-23T12:00:00.123456789Z",
            "2026-11-23 12:00:00Z",
            "2026-11-23T12:00Z",
            "2026-11-23T12:00:00",
            "2026-11-23T24:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-23T12:00:60Z",
            "20261123T120000.0000Z",
            "2026-W48-1T12:00:00Z",
            "2026-11-23T12:00:00,5Z",
            "2026-11-23T12:00:00+0900",
            "2026-11-23T12:00:00.1234567Z",
            "0000-12-31T23:59:59-01:00",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "2026-11-23T12:00:00+09:00:30",
            "2026-11-23T12:00:00z",
            "2026-11-23T12:00:00 Z",
            "2026-11-23T12:00:00+23:59",
            "2026-11-23T12:00:00-24:00",
            "2026-11-23T12:00:00+09",
            "+2026-11-23T12:00:00Z",
            "2026-11-23T12:00:00.Z",
            "",
        ]
    )
    | st.datetimes(datetime(1, 1, 2), timezones=st.just(UTC)).map(datetime.isoformat)
    | st.text("0123456789-:+.TZ, ", max_size=30)
)
NUMBERS = (
    st.sampled_from(
        [
            "0",
            "-0",
            "-0.0",
            "1.0",
            "1e2",
            "1E400",
            "-1e-400",
            "9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "1e",
            "01",
            "+1",
            ".5",
            "5.",
            "NaN",
            "Infinity",
            "0.1",
            "123456789012345678901234567890",
            "5e-324",
            "1.7976931348623157e308",
            "9007199254740992.5",
            "8e299",
            "0x1",
            "1_0",
        ]
    )
    | st.integers(-10, 10).map(str)
    | st.floats().map(repr)
)
STRINGS = st.sampled_from(
    [
        '""',
        '"a"',
        '"é"',
        '"\\u00e9"',
        '"\\ud83d\\ude00"',
        '"\\ud800"',
        '"\\udc00x"',
        '"\\u0000"',
        '"\x01"',
        '"a\nb"',
        '"\\x"',
        '"ax%b"',
        '"axb"',
        '"1234"',
        '"\\/"',
        '"\x7f"',
        "'a'",
        '"unfinished',
    ]
) | st.text(max_size=4).map(lambda text: orjson.dumps(text).decode())
VALUES = (
    NUMBERS
    | STRINGS
    | STAMPS.map(lambda text: orjson.dumps(text).decode())
    | st.sampled_from(["null", "true", "false", "[]", "{}", "[1,2]", '{"n":1}', "nul", "True"])
)
NAMES = st.sampled_from([f'"{name}"' for name in ENTRY["fields"]] + ['"\\u006e"', '"y"', '""', "n"])
SPACE = st.sampled_from(["", "", "", " ", "\n", "\r\t", "\v", "\f", "\u00a0"])
FIT = {
    "n": st.integers(-6, 6).map(str),
    "x": st.floats(-1e3, 1e3).map(repr),
    "class": st.sampled_from(['"a"', '"é"', '"b"']),
    "k": NUMBERS,
    "b": st.sampled_from(["true", "false"]),
    "at": STAMPS.map(lambda text: orjson.dumps(text).decode()),
    "pin": st.just('"sealed"'),
    "s": STRINGS,
}
fitting = st.fixed_dictionaries(
    {"n": FIT["n"]}, optional={name: kind for name, kind in FIT.items() if name != "n"}
).map(lambda pairs: [(f'"{name}"', value) for name, value in pairs.items()])
members = fitting | st.tuples(fitting, st.lists(st.tuples(NAMES, VALUES), max_size=2)).map(
    lambda both: both[0] + both[1]
)


def text_of(pairs: list[tuple[str, str]], space: str) -> bytes:
    body = ",".join(f"{space}{name}{space}:{space}{value}" for name, value in pairs)
    return f"{space}{{{body}}}{space}".encode(errors="surrogatepass")


OBJECTS = st.builds(text_of, members, SPACE)
RAW = (
    OBJECTS
    | st.tuples(OBJECTS, st.sampled_from([b"", b"{}", b",", b"\xff", b"\0", b"\xef\xbb\xbf"])).map(
        lambda both: both[1] + both[0] + both[1]
    )
    | OBJECTS.map(lambda raw: orjson.dumps(raw.decode(errors="replace")))
    | st.sampled_from(
        [None, b"", b"null", b"{", b'{"n":1}{"n":2}', b"[" * 5000, b'{"n":1', b',"x":2}', b'"', b"\xff", b'{"n":1,}']
    )
    | st.binary(max_size=20)
)
IDS = st.sampled_from([b"e1", b"e2", b"", b"x" * 64, b"x" * 65, "é".encode() * 64, b"\xff"])
TIMES = STAMPS.map(lambda text: text.encode(errors="replace")) | st.just(b"\xff")
SOME = st.fixed_dictionaries({}, optional={"event-id": IDS, "event-time": TIMES, "schema": st.just(b"1")}).map(
    lambda named: list(named.items())
)
COLLECTED = st.builds(
    lambda event_id, time: [("event-id", event_id), ("event-time", time), ("pipeline", b"p"), ("schema", b"1")],
    IDS, TIMES,
)  # fmt: skip
ODD = COLLECTED.map(lambda given: given[1:] + given[:1]) | st.tuples(COLLECTED, SOME).map(lambda two: two[0] + two[1])
ARRIVALS = st.sampled_from([NOW, NOW - timedelta(days=1), NOW - timedelta(days=30), NOW + timedelta(days=400)]).map(
    lambda moment: (1, round(moment.timestamp() * 1000))
) | st.sampled_from([(0, 0), (1, 0), (2, 2**62), (1, -1)])
HEADERS = SOME | COLLECTED | ODD
BATCHES = st.lists(st.tuples(RAW, HEADERS, ARRIVALS), max_size=12) | st.lists(
    st.tuples(RAW, COLLECTED, ARRIVALS), max_size=12
)
Sent = tuple[bytes | None, list[tuple[str, bytes]], tuple[int, int]]


def make(batch: list[Sent]) -> list[Message]:
    return [
        Message(topic="p", partition=n % 3, offset=n, value=raw, headers=headers or None, timestamp=stamp)
        for n, (raw, headers, stamp) in enumerate(batch)
    ]


def assert_both_ways_agree(decoder: Decoder, messages: list[Message]) -> None:
    exact = [decoder.exact(message, NOW) for message in messages]
    rows = [found.row for found in exact if isinstance(found, Event)]
    letters = [found for found in exact if isinstance(found, DeadLetter)]
    decoded = decoder.decode(messages, NOW)
    expected = pa.Table.from_pylist(rows, schema=decoded.rows.schema)
    assert decoded.rows.to_pylist() == expected.to_pylist()
    assert decoded.letters == letters
    assert decoded.reached == {message.partition(): message.offset() + 1 for message in messages}
    assert [event_id.decode() for event_id in decoded.ids] == [row["_event_id"] for row in rows]


@settings(max_examples=600, deadline=None)
@given(BATCHES)
@example([(b'{"n":1.0}', [], (1, 0)), (b'{"n":-0}', [], (1, 0)), (b'{"n":1,"x":-0}', [], (1, 0))])
@example([(b'{"n":1,"n":2,"x":1e400}', [], (0, 0)), (b'{"n":"1","n":2}', [], (0, 0))])
def test_both_ways_agree(batch: list[Sent]) -> None:
    assert_both_ways_agree(DECODER, make(batch))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(STAMPS.map(lambda text: orjson.dumps({"n": 1, "at": text})), HEADERS, ARRIVALS), max_size=6))
def test_both_ways_agree_on_the_time_that_a_field_tells(batch: list[Any]) -> None:
    assert_both_ways_agree(BY_FIELD, make(batch))


@settings(max_examples=600, deadline=None)
@given(STAMPS)
@example("2026-11-23T12:00Z")
def test_arrow_reads_a_stamp_as_the_checker_does_or_not_at_all(text: str) -> None:
    (found,) = _timestamps(pa.array([text])).to_pylist()
    if found is not None:
        assert found == event.timestamp(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            fitting.map(lambda pairs: text_of(pairs, "")),
            st.just([("event-id", b"e")]),
            st.just((1, round(NOW.timestamp() * 1000))),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_no_event_that_fits_goes_the_slow_way(batch: list[Any]) -> None:
    """Else the test above would hold for a fast way that accepts nothing."""
    messages, asked = make(batch), []

    class Watched(Decoder):
        def exact(self, message: Message, now: datetime) -> Event | DeadLetter:
            asked.append(super().exact(message, now))
            return asked[-1]

    decoder = Watched(PIPELINE, "topic-1")
    decoder.decode(messages, NOW)
    accepted = [found.row for found in asked if isinstance(found, Event)]
    # Those that the exact way accepts after all are the odd spellings of a number or a stamp.
    assert all(row["at"] is not None or row["k"] is not None for row in accepted)
