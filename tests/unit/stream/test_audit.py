"""The count that a drill ends with: each kind of damage is seen, and sound tables pass."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from levada import lake
from levada.pipeline import Pipeline, parse_pipeline
from levada.stream.audit import Audit, audit

DRILL: Pipeline = parse_pipeline({"fields": {"number": {"type": "long"}}}, "drill")
CONNECTIONS, BATCHES, LINES, WRITERS = 2, 5, 6, 3
Place = tuple[int, int, int, int, int]
"""Connection, batch, line, partition, offset."""


def sound() -> list[Place]:
    """Every event once; a writer's events lie in one partition, in the order of their batches and lines."""
    return [
        (connection, batch, line, (line - 1) % WRITERS % 2, 100 * batch + 10 * connection + line)
        for connection in range(CONNECTIONS)
        for batch in range(BATCHES)
        for line in range(1, LINES + 1)
    ]


def count(folder: Path, places: Sequence[Place]) -> Audit:
    catalog = SqlCatalog(lake.CATALOG, uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
    table = lake.ensure_table(catalog, DRILL)
    now = datetime.now(UTC)
    rows = [
        {
            "number": batch, "_event_id": f"drill-1-c{connection}-b{batch}/{line}", "_event_time": now,
            "_ingested_at": now, "_topic": "drill", "_partition": partition, "_offset": offset,
        }
        for connection, batch, line, partition, offset in places
    ]  # fmt: skip
    strangers = [{**rows[0], "_event_id": "drill-2-c0-b0/1"}, {**rows[0], "_event_id": "drill-1-by-hand"}]
    table.append(pa.Table.from_pylist([*rows, *strangers], schema=lake.arrow_schema(DRILL)))
    return audit(catalog, DRILL, "drill-1-", connections=CONNECTIONS, batches=BATCHES, lines=LINES, writers=WRITERS)


def test_a_sound_table(tmp_path: Path) -> None:
    assert count(tmp_path, sound()) == Audit(60, 60, 0, 0, 0, ())


def test_a_lost_event_is_named(tmp_path: Path) -> None:
    found = count(tmp_path, [place for place in sound() if place[:3] != (1, 4, 2)])
    assert (found.rows, found.missing, found.first_missing) == (59, 1, ("drill-1-c1-b4 line 2",))


def test_a_doubled_row(tmp_path: Path) -> None:
    found = count(tmp_path, [*sound(), (0, 0, 1, 0, 999)])
    assert (found.rows, found.events, found.repeated) == (61, 60, 1)


@pytest.mark.parametrize(
    "damage",
    [(0, 2, 1, 0, 50), (0, 2, 1, 0, 205), (0, 2, 1, 1, 201)],
    ids=["before an earlier batch", "behind a later line of its batch", "partition"],
)
def test_an_event_out_of_its_place(tmp_path: Path, damage: Place) -> None:
    places = [damage if place[:3] == damage[:3] else place for place in sound()]
    assert count(tmp_path, places).disordered >= 1
