"""Exactly once: whatever step fails, and whoever else writes, each event is one row."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client import REGISTRY
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table, TableProperties

from levada.config import SinkSettings
from levada.errors import UserError
from levada.stream import sink
from levada.stream import table as table_module
from levada.stream.dead import DeadLetters
from levada.stream.maintain import maintain
from levada.stream.offsets import Entry
from levada.stream.offsets import read as read_offsets
from levada.stream.sink import Session, TopicChangedError
from levada.stream.source import Source, Topic
from levada.stream.start import NeedsOperatorError, accept, starting_points
from levada.stream.table import FencedError, OwnedTable
from levada.stream.window import Window

from .rig import SMALL, Rig, read, run

GOOD = {f"e{number}": 1 for number in range(12)}


def send(rig: Rig) -> None:
    """Twelve good events, two bad ones and two repeated ones, over four partitions."""
    for number in range(12):
        rig.send({"n": number}, number % 4, event_id=f"e{number}")
    rig.send(b"{", 1, event_id="bad-1")
    rig.send({"n": -1}, 2, event_id="bad-2")
    rig.send({"n": 3}, 3, event_id="e3")
    rig.send({"n": 0}, 0, event_id="e0")


class Killed(Exception):
    pass


def kill(owner: type, method: str, *, after: bool, call: int) -> Callable[..., Any]:
    """A method that dies before or after its work, at that call; later calls work."""
    original = getattr(owner, method)
    calls = 0

    def killed(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = original(*arguments, **named)
        if calls == call:
            raise Killed
        return result

    return killed


STEPS = [
    (OwnedTable, "claim", 1),
    (Session, "_fill_window", 1),
    (Source, "read_from", 1),
    (Source, "poll", 1),
    (DeadLetters, "send", 2),
    (Session, "_topic_changed", 1),
    (DeadLetters, "flush", 1),
    (SqlCatalog, "commit_table", 1),  # the claim
    (OwnedTable, "_write", 1),
    (SqlCatalog, "commit_table", 2),  # the rows: killed after it, the reply is lost but the commit stands
    (Window, "commit", 1),
    (Session, "_committed", 1),
    (Source, "show_progress", 1),
    (OwnedTable, "expire", 1),
    (OwnedTable, "expire", 2),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "method", "call"), STEPS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_killed_at_any_step(
    rig: Rig, owner: type, method: str, call: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(rig)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, kill(owner, method, after=after, call=call))
        with pytest.raises(Killed):
            run(rig, 16)
    offsets = read_offsets(table_of(rig)) if rig.catalog().table_exists(rig.pipeline.table) else None
    reached = 0 if offsets is None else sum(entry.next for entry in offsets.of("topic-1").values())
    assert reached in (0, 16)
    run(rig, 16 - reached)
    assert rig.ids() == GOOD
    # Dead letters come at least once: none is missing.
    assert {headers["event-id"] for _, headers in rig.letters()} == {"bad-1", "bad-2"}


def table_of(rig: Rig) -> Table:
    return rig.catalog().load_table(rig.pipeline.table)


def test_resumes_where_the_table_says(rig: Rig) -> None:
    send(rig)
    run(rig, 16)
    rig.send({"n": 12}, 2, event_id="e12")
    run(rig, 1)
    assert rig.ids() == {**GOOD, "e12": 1}
    offsets = read_offsets(table_of(rig))
    assert offsets is not None
    assert offsets.of("topic-1") == {0: Entry(4, 2), 1: Entry(4, 2), 2: Entry(5, 2), 3: Entry(4, 2)}


@pytest.mark.row(22)
@pytest.mark.parametrize("property_taken_away", [False, True])
def test_stale_writer_is_fenced(rig: Rig, property_taken_away: bool) -> None:
    send(rig)
    table = OwnedTable(rig.catalog(), rig.pipeline).table
    assert table.properties[TableProperties.COMMIT_NUM_RETRIES] == "0"
    if property_taken_away:  # then PyIceberg would put a stale append on top of the newer one
        with table.transaction() as change:
            change.remove_properties(TableProperties.COMMIT_NUM_RETRIES)
    with rig.session() as stale:
        stale.start()
        read(stale, 16)
        run(rig, 16)
        with pytest.raises(FencedError):
            stale.commit()
    assert rig.ids() == GOOD


def test_a_commit_by_others_is_no_fence(rig: Rig) -> None:
    send(rig)
    with rig.session() as session:
        session.start()
        read(session, 16)
        table = table_of(rig)
        table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, "training-1").commit()
        session.commit()
    assert rig.ids() == GOOD
    assert "training-1" in table_of(rig).refs()


def test_maintenance_on_top_does_not_hide_the_offsets(rig: Rig) -> None:
    send(rig)
    run(rig, 16)
    table = table_of(rig)
    table.overwrite(table.scan().to_arrow())  # a compaction that knows nothing of us
    rig.send({"n": 12}, 0, event_id="e12")
    run(rig, 1)
    assert rig.ids() == {**GOOD, "e12": 1}


def test_old_snapshots_are_expired_and_tags_stay(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "KEEP_SNAPSHOTS", 4)
    with rig.session() as session:
        session.start()
        for number in range(12):
            rig.send({"n": number}, event_id=f"e{number}")
            read(session, 1)
            session.commit()
            if number == 1:
                table = table_of(rig)
                table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, "training-1").commit()
    table = table_of(rig)
    assert 4 <= len(table.metadata.snapshots) <= 8
    assert len(table.scan(snapshot_id=table.refs()["training-1"].snapshot_id).to_arrow()) == 2
    assert rig.ids() == {f"e{number}": 1 for number in range(12)}


@pytest.mark.row(22)
def test_forgetting_snapshots_hides_no_other_owner(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "KEEP_SNAPSHOTS", 2)
    stale = held_for_long(rig)
    OwnedTable(rig.catalog(), rig.pipeline).claim("topic-1", {0: 4})
    stale.expire()
    with pytest.raises(FencedError, match=r"claimed partition 0 \(epoch 1, now 2\)"):
        stale.append(pa.Table.from_pylist([], stale.table.schema().as_arrow()), {0: 5})


def test_forgetting_snapshots_hides_no_sibling(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "KEEP_SNAPSHOTS", 2)
    first = held_for_long(rig)
    sibling = OwnedTable(rig.catalog(), rig.pipeline)
    sibling.claim("topic-1", {1: 7})
    first.expire()
    first.append(pa.Table.from_pylist([], first.table.schema().as_arrow()), {0: 5})
    offsets = read_offsets(table_of(rig))
    assert offsets is not None
    assert offsets.of("topic-1") == {0: Entry(5, 1), 1: Entry(7, 2)}
    assert len(table_of(rig).metadata.snapshots) < 2 + 4


def test_a_snapshot_that_another_has_forgotten_ends_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "KEEP_SNAPSHOTS", 2)
    first = held_for_long(rig)
    stale = table_of(rig)
    first.expire()
    with pytest.raises(CommitFailedException, match="does not exist"):
        table_module.expire(stale)


def test_forgetting_snapshots_removes_no_metadata_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(table_module, "KEEP_SNAPSHOTS", 2)
    with OwnedTable(rig.catalog(), rig.pipeline).table.transaction() as change:
        change.set_properties({TableProperties.METADATA_PREVIOUS_VERSIONS_MAX: "2"})
    table = held_for_long(rig)
    for reached in range(5, 12):
        table.expire()
        table.append(pa.Table.from_pylist([], table.table.schema().as_arrow()), {0: reached})
    assert [record.getMessage() for record in caplog.records if "Failed to delete" in record.getMessage()] == []


def held_for_long(rig: Rig) -> OwnedTable:
    """A table whose partition 0 is claimed and read up to offset 4, a snapshot each; there are four or more."""
    table = OwnedTable(rig.catalog(), rig.pipeline)
    table.claim("topic-1", {0: 0})
    for reached in range(1, 5):
        table.append(pa.Table.from_pylist([], table.table.schema().as_arrow()), {0: reached})
    return table


def test_starts_that_come_to_nothing_leave_no_trail(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start claims the table by a snapshot; a sink in a crash loop must not fill it with them."""
    monkeypatch.setattr(table_module, "KEEP_SNAPSHOTS", 2)
    send(rig)
    for _ in range(10):
        run(rig, 0)
    assert len(table_of(rig).metadata.snapshots) <= 4
    run(rig, 16)
    assert rig.ids() == GOOD


@pytest.mark.row(20)
@pytest.mark.parametrize("while_running", [False, True])
def test_a_replaced_topic_stops_the_sink_by_name(rig: Rig, while_running: bool) -> None:
    send(rig)
    if while_running:
        with rig.session() as session:
            session.start()
            read(session, 16)
            rig.topic = replace(rig.topic, id="topic-2")
            with pytest.raises(NeedsOperatorError, match=r"deleted and created again.*levada sink --accept"):
                session.commit()
        assert rig.rows() == []
    else:
        run(rig, 16)
        rig.topic = replace(rig.topic, id="topic-2")
        with rig.session() as session, pytest.raises(NeedsOperatorError) as caught:
            session.start()
        assert caught.value.state == "topic-replaced"


def test_accepting_a_replaced_topic(rig: Rig) -> None:
    send(rig)
    run(rig, 16)
    rig.topic = replace(rig.topic, id="topic-2")  # with the same events in it: somebody has sent them again
    assert rig.settings.kafka is not None
    assert accept(rig.catalog(), rig.settings.kafka, rig.pipeline) == {0: 0, 1: 0, 2: 0, 3: 0}
    rig.send({"n": 12}, 0, event_id="e12")
    run(rig, 17)
    assert rig.ids() == {**GOOD, "e12": 1}
    offsets = read_offsets(table_of(rig))
    assert offsets is not None
    assert set(offsets.topics) == {"topic-1", "topic-2"}


def test_accepting_a_topic_that_lost_what_the_table_has(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that came after the loss have offsets that the table has passed: they are not passed over."""
    send(rig)
    run(rig, 16)
    assert rig.settings.kafka is not None
    for number in (0, 1):
        rig.send({"n": number}, 1, event_id=f"after-{number}")
    asked = []

    def since(_: Source, partition: int, moment: float) -> int:
        asked.append((partition, time.time() - moment))
        return 2

    monkeypatch.setattr(Source, "since", since)
    catalog = rig.catalog()
    # As if partition 1 had lost its end, and the two had come since.
    OwnedTable(catalog, rig.pipeline).claim("topic-1", {0: 4, 1: 100, 2: 4, 3: 4})
    with rig.session() as session, pytest.raises(NeedsOperatorError, match="partition 1 ends at offset 6"):
        session.start()
    assert accept(catalog, rig.settings.kafka, rig.pipeline) == {0: 4, 1: 2, 2: 4, 3: 4}
    run(rig, 4)
    assert rig.ids() == {**GOOD, "after-0": 1, "after-1": 1}
    assert asked == [(1, pytest.approx(0.9 * 3600, abs=5))]


def test_a_grown_topic_is_read_whole(rig: Rig) -> None:
    rig.topic = Topic("topic-1", (0, 1))
    rig.send({"n": 0}, 0, event_id="e0")
    with rig.session() as session:
        session.start()
        read(session, 1)
        rig.topic = Topic("topic-1", (0, 1, 2, 3))
        rig.send({"n": 3}, 3, event_id="e3")
        with pytest.raises(TopicChangedError):
            session.commit()
    run(rig, 1)
    assert rig.ids() == {"e0": 1, "e3": 1}


def test_starting_points(rig: Rig) -> None:
    """Offsets beyond the end of the log stop the sink; those that Kafka has deleted are counted and passed over."""
    send(rig)
    run(rig, 16)
    offsets = read_offsets(table_of(rig))
    assert starting_points(rig.pipeline, offsets, rig.topic, {0: (0, 9), 1: (6, 9)}) == {0: 4, 1: 6}
    lost = sink.metrics.SKIPPED.labels(rig.pipeline.name)._value.get()
    assert lost == 2
    with pytest.raises(NeedsOperatorError, match="ends at offset 3") as truncated:
        starting_points(rig.pipeline, offsets, rig.topic, {0: (0, 3)})
    assert truncated.value.state == "topic-truncated"
    with pytest.raises(NeedsOperatorError, match="no snapshot tells") as unknown:
        starting_points(rig.pipeline, None, rig.topic, {0: (0, 3)})
    assert unknown.value.state == "offsets-lost"


def test_a_table_that_others_filled_is_not_taken(rig: Rig) -> None:
    send(rig)
    run(rig, 16)
    table = table_of(rig)
    rows = table.scan().to_arrow()
    rig.catalog().drop_table(rig.pipeline.table)
    table = OwnedTable(rig.catalog(), rig.pipeline).table
    table.append(rows)
    with rig.session() as session, pytest.raises(NeedsOperatorError, match="no snapshot tells"):
        session.start()


def continuing(rig: Rig) -> None:
    rig.declare({**SMALL, "stream": {"onTopicReplaced": "continue"}})


@pytest.mark.row(20)
@pytest.mark.parametrize("while_running", [False, True])
def test_a_replaced_topic_is_read_from_its_beginning_if_declared(rig: Rig, while_running: bool) -> None:
    """Named in a metric either way, and nothing of the new topic is passed over."""
    continuing(rig)
    send(rig)
    if while_running:
        with rig.session() as session:
            session.start()
            read(session, 16)
            session.commit()
            rig.topic = replace(rig.topic, id="topic-2")
            with pytest.raises(TopicChangedError):
                session._look()
    else:
        run(rig, 16)
        rig.topic = replace(rig.topic, id="topic-2")
    rig.send({"n": 12}, 3, event_id="e12")
    run(rig, 17)
    assert rig.ids() == {**GOOD, "e12": 1}
    offsets = read_offsets(table_of(rig))
    assert offsets is not None
    assert {partition: entry.next for partition, entry in offsets.of("topic-2").items()} == {0: 4, 1: 4, 2: 4, 3: 5}
    assert sink.metrics.TOPIC_REPLACED.labels(rig.pipeline.name, "continue")._value.get() == 1


def siblings(rig: Rig, count: int) -> list[Session]:
    rig.declare({**SMALL, "stream": {"replicas": count}})
    return [rig.session(index) for index in range(count)]


def test_siblings_share_a_table_and_do_not_fence_each_other(rig: Rig) -> None:
    """Three sinks whose commits all race: none fails, and each event is one row."""
    send(rig)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(session) for session in siblings(rig, 3)]
        for session in sessions:
            session.start()
        assert [set(session._reached) for session in sessions] == [{0, 3}, {1}, {2}]
        errors: list[BaseException] = []

        def work(session: Session, own: set[int]) -> None:
            try:
                for number in range(8):
                    for partition in own:
                        rig.send({"n": 1}, partition, event_id=f"more-{partition}-{number}")
                    read(session, len(own) + (4 * len(own) if number == 0 else 0))
                    session.commit()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=[session, set(session._reached)]) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not errors
    more = {f"more-{partition}-{number}": 1 for partition in range(4) for number in range(8)}
    assert rig.ids() == {**GOOD, **more}


@pytest.mark.row(22)
def test_a_sink_that_loses_a_partition_names_it(rig: Rig) -> None:
    """From one sink to two: the old one is fenced by either of the new, and each event is one row."""
    send(rig)
    with rig.session() as old:
        old.start()
        read(old, 16)
        first, second = siblings(rig, 2)
        with first, second:
            second.start()
            with pytest.raises(FencedError, match=r"claimed partition 1 \(epoch 1, now 2\), partition 3"):
                old.commit()
            first.start()
            read(first, 8)
            first.commit()
            read(second, 8)
            second.commit()
    assert rig.ids() == GOOD
    rig.declare(SMALL)
    run(rig, 0)
    assert rig.ids() == GOOD


def test_a_sink_that_nothing_is_left_for_says_so(rig: Rig) -> None:
    with pytest.raises(UserError, match=r"LEVADA_SINK__INDEX is 1, pipeline .* has 1 sinks"):
        rig.session(1)
    rig.topic = Topic("topic-1", (0,))
    _, second = siblings(rig, 2)
    with second, pytest.raises(UserError, match="none is for sink 1 of 2: run levada topics apply"):
        second.start()


def test_a_repeated_event_is_known_where_its_key_has_moved_to(rig: Rig) -> None:
    """A topic that grows sends a key elsewhere, perhaps to another sink: what was committed before is known there."""
    rig.topic = Topic("topic-1", (0, 1))
    rig.declare({**SMALL, "stream": {"replicas": 2}})
    rig.send({"n": 1}, 0, event_id="same")
    with rig.session(0) as first:
        first.start()
        read(first, 1)
        first.commit()
    rig.topic = Topic("topic-1", (0, 1, 2, 3))
    rig.send({"n": 1}, 3, event_id="same")
    with rig.session(1) as second:
        second.start()
        read(second, 1)
        second.commit()
    assert rig.ids() == {"same": 1}


def fill_with(rig: Rig, most: int) -> Window:
    """The window of a sink that has just started, of at most so many ids."""
    rig.settings = rig.settings.model_copy(update={"sink": SinkSettings(window_ids=most)})
    with rig.session() as session:
        session.start()
        return session._window


def gauge(rig: Rig, name: str) -> float:
    value = REGISTRY.get_sample_value(f"levada_sink_window_{name}", {"pipeline": rig.pipeline.name})
    assert value is not None
    return value


def test_a_full_window_is_filled_with_the_newest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of a table may be more than memory holds: only those of the newest files are read, and only what fits."""
    for number in range(6):
        rig.send({"n": number}, event_id=f"e{number}")
        run(rig, 1)
    monkeypatch.setattr(sink, "_COUNTED_ROWS", 1)
    original, read_files = Session._read, Counter[str]()

    def watched(self: Session, files: Sequence[Any], column: str, since: int, until: int) -> Any:
        read_files[column] += len(files)
        return original(self, files, column, since, until)

    monkeypatch.setattr(Session, "_read", watched)
    window = fill_with(rig, 2)
    assert window.new([b"e%d" % number for number in range(6)]).tolist() == [True] * 4 + [False] * 2
    assert read_files == {"_ingested_at": 3, "_event_id": 2}  # of one the times, to know that it does not fit
    assert (gauge(rig, "ids"), gauge(rig, "shortened")) == (2, 1)
    assert 0 < gauge(rig, "reach_seconds") < 600
    window = fill_with(rig, 100)
    assert not window.new([b"e%d" % number for number in range(6)]).any()
    assert (gauge(rig, "ids"), gauge(rig, "shortened"), gauge(rig, "reach_seconds")) == (6, 0, 3600)


def test_a_window_is_filled_from_files_whose_times_overlap(rig: Rig) -> None:
    """Compaction puts rows of many hours of arrival into one file, beside files that came in meanwhile."""
    ago = datetime.now(UTC) - timedelta(hours=3)
    for number in range(8):
        late = number in (0, 2, 7)
        stamp = {"event_time": ago.isoformat()} if late else {}
        rig.send({"n": number}, event_id=f"e{number}", **stamp)
        run(rig, 1)
    before = len(list(table_of(rig).scan().plan_files()))
    maintain(rig.catalog(), rig.pipeline, now=lambda: time.time() + 7200)
    assert len(list(table_of(rig).scan().plan_files())) < before
    window = fill_with(rig, 4)
    assert window.new([b"e%d" % number for number in range(8)]).tolist() == [True] * 4 + [False] * 4


def test_a_window_goes_on_from_what_the_table_had(rig: Rig) -> None:
    """Full from the start on, and then at each commit: the oldest go first, those of the table before the new ones."""
    for number in range(4):
        rig.send({"n": number}, event_id=f"e{number}")
        run(rig, 1)
    rig.settings = rig.settings.model_copy(update={"sink": SinkSettings(window_ids=3)})
    with rig.session() as session:
        session.start()
        for number in range(4, 6):
            rig.send({"n": number}, event_id=f"e{number}")
            read(session, 1)
            session.commit()
            assert len(session._window) == 3
        rig.send({"n": 3}, event_id="e3")
        read(session, 1)
        session.commit()
    assert rig.ids() == {f"e{number}": 1 for number in range(6)}
