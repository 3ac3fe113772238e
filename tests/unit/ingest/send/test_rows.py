"""Rows of files as events: types, blocks, and that the fast and the slow way agree."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from levada.ingest.send import rows as module
from levada.ingest.send.rows import FileError, Place, Row, Unsendable, reader
from levada.pipeline import Pipeline, parse_pipeline

FIELDS = {"s": "string", "n": "long", "x": "double", "b": "boolean", "t": "timestamp"}
PIPELINE = parse_pipeline({"fields": {name: {"type": kind} for name, kind in FIELDS.items()}}, "p")


def read(
    path: Path, kind: str = "csv", pipeline: Pipeline = PIPELINE, start: Place | None = None, **options: Any
) -> list[Row]:
    with path.open("rb") as file:
        blocks = reader(file, path, kind, pipeline, **options).blocks(start or Place())
        return [row for block in blocks for row in block.rows]


def events(found: Sequence[Row]) -> list[Any]:
    return [json.loads(row) if isinstance(row, bytes) else row for row in found]


def test_each_type_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text(
        "s,n,x,b,t\r\n"
        'a "b",1,0.5,true,2026-01-31T12:00:00Z\r\n'
        '"c,\nd ""e"" \\",-9223372036854775808,1e-7,False,x\n'
        "é\t,007,+5.,1, 2026\n"
        ",,,,\n"
        '"",12x,nan,maybe,\n'
    )
    assert events(read(path)) == [
        {"s": 'a "b"', "n": 1, "x": 0.5, "b": True, "t": "2026-01-31T12:00:00Z"},
        {"s": 'c,\nd "e" \\', "n": -9223372036854775808, "x": 1e-7, "b": False, "t": "x"},
        {"s": "é\t", "n": 7, "x": 5.0, "b": True, "t": " 2026"},
        {"s": None, "n": None, "x": None, "b": None, "t": None},
        # What is not of its type goes as it is, for the collector to refuse.
        {"s": None, "n": "12x", "x": "nan", "b": "maybe", "t": None},
    ]


def test_a_row_of_another_length_or_encoding_does_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(b"\xef\xbb\xbfs,n,x,b,t\n1,1,1,true,1\n2,2\n\n\xff,3,3,true,3\n4,4,4,true,4,4\n5,5,5,true,5")
    good = {"s": "5", "n": 5, "x": 5.0, "b": True, "t": "5"}
    assert events(read(path)) == [
        {"s": "1", "n": 1, "x": 1.0, "b": True, "t": "1"},
        Unsendable("has 2 columns, the header has 5"),
        Unsendable("is not UTF-8"),
        Unsendable("has 6 columns, the header has 5"),
        good,
    ]


CELLS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\0\ufeff"), max_size=6),
    st.sampled_from(
        [
            "0",
            "-1",
            "1.5",
            "1e5",
            "007",
            "true",
            "FALSE",
            "1",
            " 2 ",
            "",
            '"',
            "a\nb",
            "9" * 19,
            "9" * 25,
            "+.5",
            "1e999",
        ]
    ),
)


@given(table=st.lists(st.lists(CELLS, min_size=5, max_size=5), max_size=12), size=st.integers(1, 60))
@effort(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_ways_and_every_size_of_block_give_the_same_events(
    table: list[list[str]], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.csv"
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([list(FIELDS), *table])
    path.write_text(text.getvalue(), newline="")
    whole = events(read(path))
    with monkeypatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", max(size, 16))
        assert events(read(path)) == whole
        patch.setattr(module, "_json_lines", _refuse)
        assert events(read(path)) == whole
    assert [event["s"] for event in whole] == [cells[0] or None for cells in table]


def _refuse(*_: Any) -> list[Row]:
    raise pa.ArrowInvalid("for this test")


def test_reading_goes_on_at_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    path = tmp_path / "f.csv"
    path.write_text("s,n,x,b,t\n" + "".join(f'"r\n{n}",{n},0,true,\n' for n in range(50)))
    with path.open("rb") as file:
        blocks = list(reader(file, path, "csv", PIPELINE).blocks(Place()))
    assert len(blocks) > 10
    assert sum(len(block.rows) for block in blocks) == 50
    for block in blocks:
        assert [event["n"] for event in events(read(path, start=block.start))] == list(range(block.start.row, 50))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no header"),
        ("s,n,x,b,t,Unnamed: 0\n", "'Unnamed: 0' is not a field of pipeline p.*add --skip 'Unnamed: 0'"),
        ("s,n,x,b\n", "asks for t, which the file does not have"),
        ("s,n,x,b,t,s\n", "column s is there twice"),
    ],
)
def test_what_would_be_refused_for_every_row_is_refused_before(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=message):
        read(path)


def test_columns_are_left_out_and_delimiters_chosen(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("id\ts\tn\tx\tb\tt\n7\ta,b\t1\t1\ttrue\tt\n")
    found = events(read(path, skip=["id"], delimiter="\t"))
    assert found == [{"s": "a,b", "n": 1, "x": 1.0, "b": True, "t": "t"}]


def test_an_open_quotation_mark_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(module, "BLOCK_BYTES", 500)
    path = tmp_path / "f.csv"
    path.write_text("s,n,x,b,t\n" + '"a,1,1,true,t\n' + "a,1,1,true,t\n" * 200)
    with pytest.raises(FileError, match="after byte 10; is a quotation mark open there"):
        read(path)


def test_lines_of_ndjson_go_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.ndjson"
    path.write_bytes(b'{"s": 1}\r\n\n \t\n{not json\n{"s": "\xff"}\n{"s": 2}')
    expected = [b'{"s": 1}', None, None, b"{not json", b'{"s": "\xff"}', b'{"s": 2}']
    assert read(path, "ndjson") == expected
    monkeypatch.setattr(module, "BLOCK_BYTES", 3)
    assert read(path, "ndjson") == expected


def test_each_type_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    moment = datetime(2026, 1, 31, 21, 0, 0, 5, timezone(timedelta(hours=9)))
    table = pa.table(
        {
            "s": pa.array(['a"\n', None, "c"]).dictionary_encode(),
            "n": pa.array([1, None, -(2**63)], pa.int64()),
            "x": pa.array([1e300, float("nan"), 3.0], pa.float64()),
            "b": [True, None, False],
            "t": pa.array([moment, None, moment], pa.timestamp("us", "Asia/Seoul")),
        }
    )
    pq.write_table(table, path)
    first, second, third = events(read(path, "parquet"))
    assert (first["s"], first["n"], first["x"], first["b"]) == ('a"\n', 1, 1e300, True)
    assert datetime.fromisoformat(first["t"]) == moment.astimezone(UTC)
    assert second == {"s": None, "n": None, "x": "not finite", "b": None, "t": None}
    assert (third["n"], third["x"], third["b"]) == (-(2**63), 3.0, False)


def test_parquet_goes_on_at_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PARQUET_ROWS", 7)
    path = tmp_path / "f.parquet"
    pipeline = parse_pipeline({"fields": {"n": {"type": "long"}}}, "p")
    pq.write_table(pa.table({"n": range(100)}), path, row_group_size=30)
    with path.open("rb") as file:
        blocks = list(reader(file, path, "parquet", pipeline).blocks(Place()))
    for block in blocks:
        found = read(path, "parquet", pipeline, start=block.start)
        assert [event["n"] for event in events(found)] == list(range(block.start.row, 100))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["1"]), "column n is a string, pipeline p declares a long"),
        (pa.array([1.5]), "column n is a double, pipeline p declares a long"),
    ],
)
def test_parquet_of_another_type_is_refused(tmp_path: Path, column: Any, message: str) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"n": column}), path)
    with pytest.raises(FileError, match=message):
        read(path, "parquet", parse_pipeline({"fields": {"n": {"type": "long"}}}, "p"))


def test_a_timestamp_without_a_zone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"t": pa.array([0], pa.timestamp("us"))}), path)
    with pytest.raises(FileError, match="timestamp without a zone"):
        read(path, "parquet", parse_pipeline({"fields": {"t": {"type": "timestamp"}}}, "p"))
