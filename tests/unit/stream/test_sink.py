"""What the sink writes where: rows, hours, dead letters; and how it lives through outages."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import orjson
import pytest
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from levada import lake
from levada.pipeline import parse_pipeline
from levada.stream.dead import DeadLetter
from levada.stream.events import Decoder, Event, unquote
from levada.stream.offsets import SUMMARY_KEY, Entry, Offsets
from levada.stream.sink import Buffer, Sink
from levada.stream.table import FencedError
from levada.stream.window import Tally, Window

from .rig import SMALL, Rig, read, run

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
# Appendix A of the requirements: the rules of the earlier pipeline, bounds included.
BOUNDS = {
    "sepal_length": (0.5, 30.0),
    "sepal_width": (0.3, 10.0),
    "petal_length": (0.5, 40.0),
    "petal_width": (0.1, 15.0),
}
IRIS: dict[str, Any] = {
    "fields": {
        **{
            name: {"type": "double", "rule": f"{name} BETWEEN {low} AND {high}"} for name, (low, high) in BOUNDS.items()
        },
        "species": {"type": "string", "oneOf": ["setosa", "versicolor", "virginica"]},
    }
}
FLOWER = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2, "species": "setosa"}


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.row(16)
@pytest.mark.row(17)
def test_rules_at_their_bounds(rig: Rig) -> None:
    rig.declare(IRIS)
    kept, refused = [], []
    for name, (low, high) in BOUNDS.items():
        kept += [{**FLOWER, name: low}, {**FLOWER, name: high}]
        refused += [({**FLOWER, name: value}, name) for value in (low - 1e-9, high + 1e-9, -low, 1e308)]
    kept += [{**FLOWER, "species": species} for species in ("setosa", "versicolor", "virginica")]
    refused += [({**FLOWER, "species": species}, "species") for species in ("", "Setosa", "setosa ", "rose")]
    for number, event in enumerate(kept):
        rig.send(event, event_id=f"kept-{number}")
    for event, _ in refused:
        rig.send(event)
    run(rig, len(kept) + len(refused))
    assert [{name: row[name] for name in FLOWER} for row in rig.rows()] == kept
    letters = rig.letters()
    assert [orjson.loads(message.value()) for message, _ in letters] == [event for event, _ in refused]
    assert [headers["field"] for _, headers in letters] == [field for _, field in refused]
    expected = [IRIS["fields"][field].get("rule", "oneOf") for _, field in refused]
    assert [headers["rule"] for _, headers in letters] == expected


BAD: list[tuple[bytes | None, dict[str, str | bytes], str, str]] = [
    (b"", {}, "json", ""),
    (None, {}, "json", ""),
    (b"null", {}, "json", ""),
    (b"{", {}, "json", ""),
    (b'{"n":1}{"n":2}', {}, "json", ""),
    (b'[{"n":1}]', {}, "json", ""),
    (b'{"n":NaN}', {}, "json", ""),
    (b'{"n":1,"x":"\xff"}', {}, "json", ""),
    (b"[" * 100_000, {}, "json", ""),
    (b'"{"n":1}"', {}, "json", ""),
    (b'{"n":"1"}', {}, "type", "n"),
    (b'{"n":1.5}', {}, "type", "n"),
    (b'{"n":true}', {}, "type", "n"),
    (b'{"n":99999999999999999999}', {}, "type", "n"),
    (b'{"n":1,"x":1e999}', {}, "json", ""),
    (b'{"n":null}', {}, "required", "n"),
    (b"{}", {}, "required", "n"),
    (b'{"n":1,"y":2}', {}, "unknown", "y"),
    (b'{"n":100001}', {}, "n BETWEEN 0 AND 100000", "n"),
    (b'{"n":1}', {"event_time": "2999-01-01T00:00:00Z"}, "event-time", "event-time"),
    (b'{"n":1}', {"event_time": "yesterday"}, "event-time", "event-time"),
    (b'{"n":1}', {"event_time": "2026-01-01T00:00:00"}, "event-time", "event-time"),
    (b'{"n":1}', {"event_id": b"\xff"}, "event-id", "event-id"),
    (b'{"n":1}', {"event_id": "x" * 65}, "event-id", "event-id"),
]


@pytest.mark.row(17)
def test_bad_events_are_dead_letters_and_the_stream_lives(rig: Rig) -> None:
    for raw, headers, _, _ in BAD:
        rig.send(raw, 1, **headers)
        rig.send({"n": 1}, 1)
    run(rig, 2 * len(BAD))
    assert [row["_offset"] for row in rig.rows()] == list(range(1, 2 * len(BAD), 2))
    letters = rig.letters()
    assert [message.value() for message, _ in letters] == [raw for raw, *_ in BAD]
    found = [(headers["rule"], headers["field"]) for _, headers in letters]
    assert found == [(rule, field) for _, _, rule, field in BAD]
    for number, (_, headers) in enumerate(letters):
        place = {"topic": rig.pipeline.name, "partition": "1", "offset": str(2 * number), "pipeline": rig.pipeline.name}
        assert place.items() <= headers.items()
        assert headers["event-id"]
    assert sample("levada_sink_dead_letters_total", pipeline=rig.pipeline.name, rule="json") == 11


@pytest.mark.row(21)
@pytest.mark.row(25)
def test_rows_lie_in_the_hour_of_the_event(rig: Rig) -> None:
    """Each hour is a partition, and a commit is one snapshot that says how far the topic was read.

    Around midnight, in another zone, late but within the horizon: each lands in its own hour. Beyond the horizon, and
    further ahead than allowed: a dead letter that says so, and a count.
    """
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    zone = timezone(timedelta(hours=9))
    times = [
        midnight - timedelta(milliseconds=1),
        midnight,
        midnight.astimezone(zone),
        midnight - timedelta(days=3, minutes=1),
        midnight - timedelta(days=5, hours=23),
    ]
    refused = {"late": datetime.now(UTC) - timedelta(days=7, minutes=1), "event-time": midnight + timedelta(days=2)}
    for number, moment in enumerate(times):
        rig.send({"n": number}, event_id=f"e{number}", event_time=moment.isoformat())
    for rule, moment in refused.items():
        rig.send({"n": 1}, event_id=rule, event_time=moment.isoformat())
    run(rig, len(times) + len(refused))
    table = rig.catalog().load_table(rig.pipeline.table)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    hours = {
        epoch + timedelta(hours=row["partition"]["_event_time_hour"]): row["record_count"]
        for row in table.inspect.partitions().to_pylist()
    }
    hour = timedelta(hours=1)
    assert hours == {
        midnight - hour: 1,
        midnight: 2,
        midnight - timedelta(days=3) - hour: 1,
        midnight - timedelta(days=6) + hour: 1,
    }
    one_hour = table.scan(row_filter=f"_event_time >= '{midnight.isoformat()}'")
    assert len(list(one_hour.plan_files())) == 1
    snapshot = table.current_snapshot()
    assert Offsets.parse(snapshot.summary.additional_properties[SUMMARY_KEY]).of("topic-1")[0] == Entry(7, 1)
    assert [row["_event_time"] for row in rig.rows()] == times
    assert [headers["rule"] for _, headers in rig.letters()] == ["late", "event-time"]
    assert sample("levada_sink_late_events_total", pipeline=rig.pipeline.name) == 1


def test_repeated_ids_are_dropped_in_a_batch_later_and_after_a_restart(rig: Rig) -> None:
    with rig.session() as session:
        session.start()
        rig.send({"n": 1}, 0, event_id="same")
        rig.send({"n": 2}, 1, event_id="same")
        read(session, 2)
        session.commit()
        rig.send({"n": 3}, 2, event_id="same")
        read(session, 1)
        session.commit()
    rig.send({"n": 4}, 3, event_id="same")
    run(rig, 1)
    assert rig.ids() == {"same": 1}
    assert sample("levada_sink_duplicates_total", pipeline=rig.pipeline.name) == 3


def test_a_message_without_our_headers_has_an_id_and_a_time(rig: Rig) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    rig.send({"n": 1}, 2)
    run(rig, 1)
    (row,) = rig.rows()
    assert row["_event_id"] == "topic-1/2/0"
    assert before < row["_event_time"] <= row["_ingested_at"]


def test_a_field_that_the_declaration_gained_becomes_a_column(rig: Rig) -> None:
    rig.send({"n": 1}, event_id="old")
    run(rig, 1)
    rig.declare({"fields": {"n": {"type": "long"}, "city": {"type": "string"}}})
    rig.send({"n": 2, "city": "Porto"}, event_id="new")
    run(rig, 1)
    assert [(row["n"], row["x"], row["city"]) for row in rig.rows()] == [(1, None, None), (2, None, "Porto")]
    rig.declare({"fields": {"n": {"type": "string"}}})
    with rig.session() as session, pytest.raises(lake.LakeError, match=r"column n is long, the declaration .* string"):
        session.start()


def test_a_commit_waits_for_a_pause_but_not_for_ever() -> None:
    buffer = Buffer()
    assert not buffer.due(10, last_commit=0, now=1000)
    buffer.reached = {0: 1}
    buffer.since, buffer.last = 100.0, 100.0
    assert not buffer.due(10, last_commit=0, now=100.5)
    assert buffer.due(10, last_commit=0, now=101.0)  # a pause
    buffer.last = 109.9
    assert not buffer.due(10, last_commit=0, now=109.95)
    assert buffer.due(10, last_commit=0, now=110.0)  # commitEvery
    assert not buffer.due(0.1, last_commit=109.5, now=110.0)  # one commit a second
    buffer.rows = 150_000
    assert buffer.due(10, last_commit=109.9, now=110.0)  # full


def ids(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def test_window_forgets_what_is_older_than_it() -> None:
    window = Window(240)  # in steps of ten seconds
    assert window.new(ids("a", "b", "a")).tolist() == [True, True, False]
    assert window.new(ids("b")).tolist() == [False]
    window.commit(NOW.timestamp())
    assert window.new(ids("a", "c")).tolist() == [False, True]
    window.commit(NOW.timestamp() + 240)
    assert window.new(ids("a", "c")).tolist() == [False, False]
    window.commit(NOW.timestamp() + 251)
    assert window.new(ids("a", "c")).tolist() == [True, False]


def test_window_stays_in_its_memory() -> None:
    """It forgets its oldest ids early, and says so, rather than grow with the traffic."""
    window = Window(240, most=3000)
    for number in range(10):
        assert window.new([b"%d-%d" % (number, n) for n in range(1000)]).all()
        window.commit(NOW.timestamp() + 10 * number)
    assert len(window) == 3000
    assert window.shortened
    assert not window.new(ids("9-1", "7-1")).any()
    assert window.new(ids("6-1")).all()


def test_window_is_bounded_within_its_newest_hour() -> None:
    """However fast they come: the oldest ids go first, a twenty-fourth at once, and it tells how far back it knows."""
    window, begin = Window(86_400, most=24_000), NOW.timestamp()
    for number in range(100):
        assert window.new([b"%d-%d" % (number, n) for n in range(500)]).all()
        assert window.new([b"%d+%d" % (number, n) for n in range(500)]).all()
        window.commit(begin + number)
        assert len(window) <= 24_000
        assert window.shortened == (number >= 24)
    assert len(window) > 23_000 - 1000
    assert window.reach(begin + 100) == 100 - 75  # the last that is forgotten was taken in at second 75
    assert not window.new([b"%d-%d" % (number, n) for number in range(76, 100) for n in range(0, 500, 9)]).any()
    assert window.new([b"%d+%d" % (number, n) for number in range(75) for n in range(0, 500, 9)]).all()
    assert Window(86_400).reach(begin) == 86_400


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 200), max_size=30), max_size=30), st.integers(80, 160), st.floats(0, 2))
def test_a_full_window_knows_the_newest(batches: list[list[int]], most: int, step: float) -> None:
    """One that is among the newest is known, but for a part and a batch; one that was never given is new."""
    window, order = Window(240, most), list[int]()
    for number, batch in enumerate(batches):
        found = window.new([b"%d" % n for n in batch]).tolist()
        here = set[int]()
        for n, new in zip(batch, found, strict=True):
            if n in here or n in order[-(most - most // 24 - 30) :]:
                assert not new
            if n not in here and n not in order:
                assert new
            here.add(n)
        fresh = [n for n, new in zip(batch, found, strict=True) if new]
        order = [n for n in order if n not in fresh] + fresh
        window.commit(NOW.timestamp() + step * number)
        assert len(window) <= most


MICROS = int(NOW.timestamp() * 1e6)


@settings(deadline=None)
@given(
    st.lists(st.integers(MICROS, MICROS + 5_000_000), max_size=60),
    st.integers(1, 40),
    st.integers(1, 10),
    st.integers(1, 6_000_000),
)
def test_what_fits_is_counted_before_it_is_read(times: list[int], most: int, share: int, length: int) -> None:
    tally = Tally(MICROS, MICROS + 5_000_001)
    for part in (times[::2], times[1::2]):
        tally.add(np.array(part, np.int64))
    assert len(tally) == len(times)
    spans = tally.spans(most, share, length)
    taken = [[time for time in times if begin <= time < end] for begin, end in spans]
    assert all(taken)
    assert spans == sorted(spans)
    kept = sorted(time for part in taken for time in part)
    assert kept == sorted(times)[len(times) - len(kept) :]  # the newest
    assert len(kept) <= most
    moment = 5  # µs
    if left := sorted(times)[: len(times) - len(kept)]:
        assert sum((time - MICROS) // moment == (left[-1] - MICROS) // moment for time in left) + len(kept) > most
    for begin, end in spans:
        inside = [(time - MICROS) // moment for time in times if begin <= time < end]
        assert len(inside) - inside.count(max(inside)) < share
        assert end - begin <= length + moment


def test_a_moment_with_more_ids_than_fit_is_left_out() -> None:
    """Rows that somebody wrote with one time: rather no window than no memory."""
    window, tally = Window(240, 10), Tally(MICROS, MICROS + 100)
    tally.add(np.full(11, MICROS + 50))
    assert window.spans(tally) == []
    assert window.shortened
    assert window.reach(NOW.timestamp() + 1) == pytest.approx(1, abs=0.001)


@settings(deadline=None)
@given(st.lists(st.lists(st.text(max_size=2), max_size=20), max_size=8), st.integers(0, 300))
def test_window_is_a_set(batches: list[list[str]], step: int) -> None:
    window, seen = Window(86_400), set[str]()
    window.fill([ids("x"), ids("y")], NOW.timestamp())
    seen |= {"x", "y"}
    for number, batch in enumerate(batches):
        expected = []
        for event_id in batch:
            expected.append(event_id not in seen)
            seen.add(event_id)
        assert window.new(ids(*batch)).tolist() == expected
        window.commit(NOW.timestamp() + step * number)
    assert len(window) == len(seen)


def test_window_finds_each_of_many() -> None:
    """More ids than its filter begins with, in more runs than one."""
    window = Window(86_400)
    for number in range(30):
        assert window.new([b"%d" % n for n in range(number * 1000, number * 1000 + 1000)]).all()
        window.commit(NOW.timestamp() + 1200 * number)
    assert not window.new([b"%d" % n for n in range(0, 30_000, 7)]).any()
    assert window.new([b"%d" % n for n in range(30_000, 60_000)]).all()


def test_outer_quotes_are_stripped() -> None:
    assert unquote(b'"{\\"n\\": 1}"') == b'{"n": 1}'
    for other in (b'{"n":1}', b'"', b'"x', b"", b'"a" "b"'):
        assert unquote(other) == other


def message(
    value: bytes | None, headers: dict[str, str | bytes], arrived: datetime = NOW, place: tuple[int, int] = (1, 7)
) -> Message:
    pairs = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers.items()]
    stamp = (1, round(arrived.timestamp() * 1000))
    return Message(topic="p", partition=place[0], offset=place[1], value=value, headers=pairs, timestamp=stamp)


# Any stamp will do where the bounds of time are not what is tested.
AGES: dict[str, Any] = {**SMALL, "lake": {"lateHorizon": "99999d"}}
DECODER = Decoder(parse_pipeline(SMALL, "p"), "topic-1")
TIMELESS = Decoder(parse_pipeline(AGES, "p"), "topic-1")


@given(
    n=st.integers(0, 100_000),
    x=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    event_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    stamp=st.datetimes(datetime(1900, 1, 1), datetime(2026, 11, 23, 12), timezones=st.just(UTC)),
    quoted=st.booleans(),
)
def test_what_was_sent_is_what_is_decoded(
    n: int, x: float | None, event_id: str, stamp: datetime, quoted: bool
) -> None:
    raw = orjson.dumps({"n": n, "x": x})
    headers: dict[str, str | bytes] = {"event-id": event_id, "event-time": stamp.isoformat()}
    event = TIMELESS.exact(message(orjson.dumps(raw.decode()) if quoted else raw, headers), NOW)
    assert isinstance(event, Event)
    assert (event.id, event.time) == (event_id, stamp)
    assert (event.row["n"], event.row["x"]) == (n, x)
    table = lake.pa.Table.from_pylist([event.row], schema=lake.arrow_schema(parse_pipeline(SMALL, "p")))
    assert table.to_pylist()[0]["_event_time"] == stamp


@given(raw=st.binary(max_size=60), event_id=st.binary(max_size=70), stamp=st.binary(max_size=40))
def test_any_bytes_are_an_event_or_a_letter(raw: bytes, event_id: bytes, stamp: bytes) -> None:
    headers: dict[str, str | bytes] = {"event-id": event_id, "event-time": stamp}
    assert isinstance(DECODER.exact(message(raw, headers), NOW), Event | DeadLetter)


def test_a_stamp_may_be_ahead_or_late_by_the_bound_and_no_more() -> None:
    arrived = NOW - timedelta(hours=3)  # the sink was down: what counts is when Kafka got it
    for stamp, rule in (
        (arrived + timedelta(hours=1), None),
        (arrived + timedelta(hours=1, milliseconds=1), "event-time"),
        (arrived - timedelta(days=7), None),
        (arrived - timedelta(days=7, milliseconds=1), "late"),
    ):
        given = message(b'{"n":1}', {"event-time": stamp.isoformat()}, arrived)
        found = DECODER.exact(given, NOW)
        assert (found.rule if isinstance(found, DeadLetter) else None) == rule
        assert [letter.rule for letter in DECODER.decode([given], NOW).letters] == ([rule] if rule else [])


def test_a_clock_that_is_hours_off_refuses_nothing() -> None:
    """Neither the sink's nor that of the machine whose stamp Kafka has."""
    for sink, sender in ((-23, 0), (-2, 0), (2, 0), (23, 0), (0, -23), (0, 23)):
        sent = NOW + timedelta(hours=sender)
        given = message(b'{"n":1}', {"event-time": sent.isoformat()}, sent)
        assert isinstance(DECODER.exact(given, NOW + timedelta(hours=sink)), Event)
        assert DECODER.decode([given], NOW + timedelta(hours=sink)).letters == []
    # Beyond a day it is no clock that is off.
    far = NOW + timedelta(days=400)
    assert [each.rule for each in DECODER.decode([message(b'{"n":1}', {}, far)], NOW).letters] == ["event-time"]


def test_the_sink_lives_through_an_outage(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog is away twice; then rows come, and a stop commits what is buffered."""
    away = 2

    def catalog(_: object) -> Any:
        nonlocal away
        if away:
            away -= 1
            raise OSError("the catalog is away")
        return rig.catalog()

    monkeypatch.setattr(lake, "catalog", catalog)
    rig.send({"n": 1}, event_id="e1")
    sink, stop = Sink(rig.settings, rig.pipeline), threading.Event()
    thread = threading.Thread(target=sink.run, args=[stop])
    thread.start()
    try:
        assert not sink.ready()
        deadline = time.monotonic() + 30
        while not sink.ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sink.ready()
        assert sink.live()
        rig.send({"n": 2}, event_id="e2")
        time.sleep(0.5)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert rig.ids() == {"e1": 1, "e2": 1}
    assert sample("levada_sink_failures_total", pipeline=rig.pipeline.name, error="OSError") == 2
    assert sample("levada_sink_committed_offset", pipeline=rig.pipeline.name, partition="0") == 2
    assert sample("levada_lake_rows", pipeline=rig.pipeline.name) == 2
    assert sample("levada_sink_commit_seconds_count", pipeline=rig.pipeline.name) >= 1
    assert sample("levada_sink_freshness_seconds_count", pipeline=rig.pipeline.name) >= 1


def test_a_replaced_topic_is_shown_until_it_is_accepted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake, "catalog", lambda _: rig.catalog())
    rig.send({"n": 1}, event_id="e1")
    run(rig, 1)
    rig.topic = type(rig.topic)("topic-2", rig.topic.partitions)
    sink, stop = Sink(rig.settings, rig.pipeline), threading.Event()
    thread = threading.Thread(target=sink.run, args=[stop])
    thread.start()
    labels = {"pipeline": rig.pipeline.name, "state": "topic-replaced"}
    deadline = time.monotonic() + 20
    while not sample("levada_sink_needs_operator", **labels) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sink.ready()
    assert sink.live()
    stop.set()
    thread.join(20)
    assert sample("levada_sink_needs_operator", **labels) == 1


def test_a_fenced_sink_stands_by_so_that_its_metric_is_seen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process counts ends with it; who looks must find the zero before the first, and the first."""
    monkeypatch.setattr(lake, "catalog", lambda _: rig.catalog())
    sink, stop, ended = Sink(rig.settings, rig.pipeline), threading.Event(), list[BaseException]()
    assert REGISTRY.get_sample_value("levada_sink_fenced_total", {"pipeline": rig.pipeline.name}) == 0

    def carry() -> None:
        try:
            sink.run(stop)
        except FencedError as error:
            ended.append(error)

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not sink.ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        run(rig, 0)  # another sink takes its partitions
        rig.send({"n": 1}, event_id="e1")
        while not sample("levada_sink_fenced_total", pipeline=rig.pipeline.name) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sample("levada_sink_fenced_total", pipeline=rig.pipeline.name) == 1
        time.sleep(0.3)
        assert thread.is_alive()
        assert sink.live()
        assert not sink.ready()
        assert not ended
    finally:
        stop.set()
        thread.join(20)
    assert "another sink has claimed partition 0" in str(ended[0])
    assert rig.rows() == []
