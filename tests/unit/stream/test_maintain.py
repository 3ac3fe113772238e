"""Upkeep changes files, never rows: whoever reads meanwhile, and whoever commits."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table

from levada.stream import maintain as maintain_module
from levada.stream import table as table_module
from levada.stream.maintain import Report, maintain
from levada.stream.offsets import read as read_offsets
from levada.stream.table import OwnedTable

from .rig import Rig, read, run

LATER = 7 * 3600.0  # what arrives now lies in hours that are long over by then
AGO = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=3)


def upkeep(rig: Rig, after: float = LATER, **options: Any) -> Report:
    return maintain(rig.catalog(), rig.pipeline, now=lambda: time.time() + after, **options)


def many_files(rig: Rig, commits: int, hours: int = 1) -> None:
    """A small file in each of these hours, for each commit."""
    with rig.session() as session:
        session.start()
        for number in range(commits):
            for hour in range(hours):
                stamp = (AGO - timedelta(hours=hour)).isoformat()
                rig.send({"n": number}, number % 4, event_id=f"e{number}-{hour}", event_time=stamp)
            read(session, hours)
            session.commit()


def table_of(rig: Rig) -> Table:
    return rig.catalog().load_table(rig.pipeline.table)


def files_of(rig: Rig) -> Counter[int]:
    return Counter(task.file.partition[0] for task in table_of(rig).scan().plan_files())


@pytest.mark.row(23)
def test_closed_hours_have_few_files_and_the_same_rows(rig: Rig) -> None:
    many_files(rig, 6, hours=2)
    rows, offsets = rig.rows(), read_offsets(table_of(rig))
    tag = table_of(rig)
    pinned = tag.current_snapshot().snapshot_id
    tag.manage_snapshots().create_tag(pinned, "training-1").commit()
    assert set(files_of(rig).values()) == {6}
    report = upkeep(rig)
    assert (report.hours, report.files_before, report.files_after) == (2, 12, 2)
    assert set(files_of(rig).values()) == {1}
    assert rig.rows() == rows
    assert read_offsets(table_of(rig)) == offsets
    assert sorted(table_of(rig).scan(snapshot_id=pinned).to_arrow()["_event_id"].to_pylist()) == sorted(
        row["_event_id"] for row in rows
    )
    assert upkeep(rig) == Report(waiting=report.waiting)  # a second run finds nothing to do
    assert table_of(rig).current_snapshot().summary.additional_properties["total-records"] == "12"
    rig.send({"n": 1}, 0, event_id="after")
    run(rig, 1)
    assert len(rig.rows()) == 13


def commits(rig: Rig, count: int) -> None:
    """So many commits, of 200 rows each."""
    with rig.session() as session:
        session.start()
        for number in range(count):
            rig.send_many([(b'{"n":%d}' % own, f"{number}-{own}", AGO.isoformat(), 0) for own in range(200)])
            read(session, 200)
            session.commit()


def test_files_are_closed_at_their_size(rig: Rig) -> None:
    """At most ceil(bytes / target) + 1 files, whatever the target; large files are left alone."""
    commits(rig, 8)
    target = 2 * max(task.file.file_size_in_bytes for task in table_of(rig).scan().plan_files())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maintain_module, "_ROW_GROUP", 100)
        upkeep(rig, target_bytes=target)
    sizes = [task.file.file_size_in_bytes for task in table_of(rig).scan().plan_files()]
    assert 1 < len(sizes) <= math.ceil(sum(sizes) / target) + 1
    assert len(rig.rows()) == 1600


def test_a_row_group_ends_with_its_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may be wide: what is held in memory is bounded by their size, not by their number alone."""
    commits(rig, 3)
    monkeypatch.setattr(maintain_module, "_READ_ROWS", 50)
    monkeypatch.setattr(maintain_module, "_ROW_GROUP_BYTES", 10_000)
    upkeep(rig)
    (task,) = table_of(rig).scan().plan_files()
    metadata = pq.ParquetFile(task.file.file_path.removeprefix("file://")).metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(groups) == 600
    assert max(groups) < 200
    assert len(rig.ids()) == 600


def test_a_file_is_read_a_little_at_a_time(rig: Rig, tmp_path: Path) -> None:
    """Alike rows take a thousandth of their size on disk. A file that has names and no field ids is read too."""
    rig.declare({"fields": {"s": {"type": "string"}, "later": {"type": "double"}}})
    table = OwnedTable(rig.catalog(), rig.pipeline).table
    schema = pa.schema(
        [field for field in schema_to_pyarrow(table.schema(), include_field_ids=True) if field.name in ("s", "later")]
    )
    piece = pa.table({"s": pa.array(["x" * 1000] * 2000, pa.large_string())})
    with pq.ParquetWriter(tmp_path / "alike.parquet", piece.schema, use_dictionary=False, compression="zstd") as writer:
        for _ in range(40):
            writer.write_table(piece)
    before, peak, rows = pa.total_allocated_bytes(), 0, 0
    for part in maintain_module._rows(table, f"file://{tmp_path}/alike.parquet", schema):
        rows += len(part)
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert part["later"].null_count == len(part)
    assert rows == 80_000
    assert peak < 40 * piece.nbytes / 2


def test_columns_that_came_later_are_empty_before(rig: Rig) -> None:
    for number, more in enumerate(({}, {"city": "Porto"}, {})):
        fields: dict[str, Any] = {"n": {"type": "long"}}
        if number:
            fields["city"] = {"type": "string", "required": False}
        rig.declare({"fields": fields})
        rig.send({"n": number, **more}, event_id=f"e{number}", event_time=AGO.isoformat())
        run(rig, 1)
    rows = rig.rows()
    assert upkeep(rig).files_after == 1
    assert rig.rows() == rows
    assert [row["city"] for row in rows] == [None, "Porto", None]


def test_an_open_hour_is_left_alone(rig: Rig) -> None:
    rig.send({"n": 1}, event_id="now")
    run(rig, 1)
    many_files(rig, 3)  # their hour is over, but something came into it a moment ago
    assert upkeep(rig, after=0).hours == 0
    assert upkeep(rig, after=299).hours == 0
    assert upkeep(rig, after=301).hours == 1


@pytest.mark.row(23)
def test_a_reader_sees_each_row_once_while_files_are_compacted_and_appended(rig: Rig) -> None:
    many_files(rig, 5)
    stop, problems, scans = threading.Event(), list[str](), 0

    def scan() -> None:
        nonlocal scans
        seen: set[str] = set()
        while not stop.is_set():
            ids = Counter(table_of(rig).scan().to_arrow()["_event_id"].to_pylist())
            if max(ids.values()) > 1:
                problems.append(f"twice: {ids}")
            if not seen <= set(ids):
                problems.append(f"gone: {seen - set(ids)}")
            seen = set(ids)
            scans += 1

    reader = threading.Thread(target=scan)
    reader.start()
    try:
        with rig.session() as session:
            session.start()
            for number in range(5):
                upkeep(rig)
                for own in range(3):
                    rig.send({"n": 1}, 0, event_id=f"more-{number}-{own}", event_time=AGO.isoformat())
                    read(session, 1)
                    session.commit()
    finally:
        stop.set()
        reader.join(30)
    assert not problems
    assert scans > 5
    assert rig.ids() == {f"e{n}-0": 1 for n in range(5)} | {f"more-{n}-{own}": 1 for n in range(5) for own in range(3)}


def test_compaction_loses_to_an_append_and_comes_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    many_files(rig, 4)
    original, raced = maintain_module._replace, 0

    def race(*arguments: Any) -> None:
        nonlocal raced
        if not raced:
            raced += 1
            rig.send({"n": 1}, 0, event_id="raced", event_time=AGO.isoformat())
            run(rig, 1)
        original(*arguments)

    monkeypatch.setattr(maintain_module, "_replace", race)
    report = upkeep(rig)
    assert (report.hours, report.skipped) == (1, [])
    assert rig.ids() == {f"e{number}-0": 1 for number in range(4)} | {"raced": 1}
    offsets = read_offsets(table_of(rig))
    assert offsets is not None
    assert offsets.of("topic-1")[0].next == 2  # what the race read stays read


def test_compaction_gives_up_files_that_another_replaced(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    many_files(rig, 4)
    original, nested = maintain_module._rewritten, []

    def twice(*arguments: Any) -> Any:
        new = list(original(*arguments))
        if not nested:
            nested.append(True)
            nested.append(upkeep(rig))
        return new

    monkeypatch.setattr(maintain_module, "_rewritten", twice)
    report = upkeep(rig)
    assert nested[1].hours == 1
    assert report.hours == 0
    assert "its files have changed" in report.skipped[0]
    assert rig.ids() == {f"e{number}-0": 1 for number in range(4)}


def test_an_hour_that_only_conflicts_is_left_for_the_next_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    many_files(rig, 4)
    before = {path for path in on_disk(rig) if path.suffix == ".parquet"}

    def late(*_: Any) -> None:
        raise CommitFailedException("another commit came first")

    with monkeypatch.context() as patched:
        patched.setattr(maintain_module, "_replace", late)
        patched.setattr(table_module, "_PATIENCE", 0)
        report = upkeep(rig)
    assert (report.hours, len(report.skipped)) == (0, 1)
    assert "1 conflicts in a row, compaction given up" in report.skipped[0]
    assert {path for path in on_disk(rig) if path.suffix == ".parquet"} == before
    assert upkeep(rig).hours == 1


def stray(rig: Rig) -> Path:
    data = next(rig.folder.glob("warehouse/**/data/**/*.parquet")).with_name("stray.parquet")
    data.write_bytes(b"left by a process that was killed")
    return data


def on_disk(rig: Rig) -> set[Path]:
    return {path for path in rig.folder.glob("warehouse/**/*") if path.is_file()}


def test_nobodys_files_are_removed_after_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those left by a kill and those that were compacted away; what a tag needs stays."""
    monkeypatch.setattr(table_module, "KEEP_SNAPSHOTS", 2)
    many_files(rig, 3)
    table = table_of(rig)
    table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, "training-1").commit()
    pinned = {Path(task.file.file_path.removeprefix("file://")) for task in table.scan().plan_files()}
    for number in range(3):
        rig.send({"n": 9}, 3, event_id=f"f{number}", event_time=AGO.isoformat())
        run(rig, 1)
    lost = stray(rig)
    first = upkeep(rig)
    assert first.hours == 1
    assert first.snapshots > 0
    assert first.waiting > 1
    assert first.removed == 0
    assert lost.exists()
    assert upkeep(rig, after=LATER + 7100).removed == 0
    second = upkeep(rig, after=LATER + 7300)
    assert second.removed >= first.waiting
    assert not lost.exists()
    assert pinned <= on_disk(rig)
    ids = {f"e{n}-0": 1 for n in range(3)} | {f"f{n}": 1 for n in range(3)}
    assert rig.ids() == ids
    assert len(table_of(rig).scan(snapshot_id=table_of(rig).refs()["training-1"].snapshot_id).to_arrow()) == 3
    assert len(table_of(rig).metadata.snapshots) <= 6


def test_a_commit_that_was_under_way_does_not_name_removed_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that was stopped between writing and committing, for longer than clean-up waits."""
    many_files(rig, 1)
    rig.send({"n": 5}, 0, event_id="slow")
    clock = 0.0
    with rig.session() as session:
        session.start()
        read(session, 1)
        original = OwnedTable._commit

        def paused(self: OwnedTable, files: Any, offsets: Any) -> None:
            nonlocal clock
            if files and not clock:
                upkeep(rig, after=0)
                assert upkeep(rig, after=8000).removed >= 1
                clock = 8000.0
            original(self, files, offsets)

        monkeypatch.setattr(OwnedTable, "_commit", paused)
        monkeypatch.setattr(table_module.time, "monotonic", lambda real=time.monotonic: real() + clock)
        with pytest.raises(CommitFailedException):
            session.commit()
    monkeypatch.undo()
    monkeypatch.setattr("levada.stream.source.Source.topic", lambda _: rig.topic)
    run(rig, 1)
    assert rig.ids() == {"e0-0": 1, "slow": 1}


def test_clean_up_waits_when_a_commit_comes_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    many_files(rig, 1)
    lost = stray(rig)
    upkeep(rig)

    def refused(*_: Any) -> None:
        raise CommitFailedException

    with monkeypatch.context() as patch:
        patch.setattr(Table, "transaction", refused)
        assert upkeep(rig, after=LATER + 8000).removed == 0
    assert lost.exists()
    assert upkeep(rig, after=LATER + 8000).removed >= 1


@pytest.mark.row(27)
def test_more_than_a_thousand_objects_are_all_seen(rig: Rig) -> None:
    """A listing of a store comes in pages of a thousand; no table may end there."""
    commits, hours = 7, 160
    with rig.session() as session:
        session.start()
        for commit in range(commits):
            rig.send_many(
                [
                    (b'{"n":1}', f"e{commit}-{hour}", (AGO - timedelta(hours=hour)).isoformat(), 0)
                    for hour in range(hours)
                ]
            )
            read(session, hours)
            session.commit()
    expected = {f"e{commit}-{hour}": 1 for commit in range(commits) for hour in range(hours)}
    assert sum(files_of(rig).values()) == commits * hours
    assert rig.ids() == expected
    lost = [stray(rig).rename(rig.folder / "warehouse" / "events" / rig.pipeline.name / "data" / f"stray-{number}")
            for number in range(1200)]  # fmt: skip
    assert upkeep(rig, quiet_seconds=1e9).waiting >= 1200
    assert upkeep(rig, after=LATER + 8000, quiet_seconds=1e9).removed >= 1200
    assert not any(path.exists() for path in lost)
    assert rig.ids() == expected
