"""The lake's tables follow the declaration."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import snapshots, update

from levada import lake
from levada.config import ConfigError, Settings
from levada.pipeline import Pipeline, parse_pipeline

TYPES = ("string", "long", "double", "boolean", "timestamp")


def pipeline(**fields: str) -> Pipeline:
    declared: dict[str, Any] = {name: {"type": type_} for name, type_ in fields.items()}
    return parse_pipeline({"fields": declared}, "my-orders")


@pytest.fixture
def catalog(tmp_path: Path) -> SqlCatalog:
    return SqlCatalog(lake.CATALOG, uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/warehouse")


def test_a_table_has_the_declared_fields_and_where_they_came_from(catalog: SqlCatalog) -> None:
    declared = pipeline(**{f"f_{type_}": type_ for type_ in TYPES})
    table = lake.ensure_table(catalog, declared)
    assert table.name() == ("events", "my_orders")
    columns = {field.name: (str(field.field_type), field.required) for field in table.schema().fields}
    assert columns == {
        "f_string": ("string", False),
        "f_long": ("long", False),
        "f_double": ("double", False),
        "f_boolean": ("boolean", False),
        "f_timestamp": ("timestamptz", False),
        "_event_id": ("string", True),
        "_event_time": ("timestamptz", True),
        "_ingested_at": ("timestamptz", True),
        "_topic": ("string", True),
        "_partition": ("int", True),
        "_offset": ("long", True),
    }
    (partition,) = table.spec().fields
    assert (partition.name, str(partition.transform)) == ("_event_time_hour", "hour")
    assert table.schema().find_column_name(partition.source_id) == "_event_time"
    assert table.metadata.format_version == 2
    assert table.properties["commit.retry.num-retries"] == "0"
    assert lake.ensure_table(catalog, declared).metadata == table.metadata  # again changes nothing
    table.append(lake.arrow_schema(declared).empty_table())  # what the sink writes fits what is there


def test_fields_are_added_kept_and_never_retyped(catalog: SqlCatalog) -> None:
    lake.ensure_table(catalog, pipeline(a="long", b="string"))
    table = lake.ensure_table(catalog, pipeline(b="string", c="double"))
    assert [name for name in table.schema().column_names if not name.startswith("_")] == ["a", "b", "c"]
    table.append(lake.arrow_schema(pipeline(b="string", c="double")).empty_table())
    with pytest.raises(lake.LakeError, match=r"column b is string, the declaration of pipeline my-orders says long"):
        lake.ensure_table(catalog, pipeline(b="long"))


def test_arrow_types_are_exact() -> None:
    schema = lake.arrow_schema(pipeline(**{type_[0]: type_ for type_ in TYPES}))
    assert schema.field("t").type == pa.timestamp("us", tz="UTC")
    assert schema.field("l").type == pa.int64()
    assert not schema.field("_event_id").nullable


def test_the_catalog_names_what_is_not_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LEVADA_POSTGRES__HOST"):
        lake.catalog(Settings())


def test_the_times_of_a_table_go_on_when_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark and Flink do not load a table otherwise, by the rules that are checked here."""
    catalog = lake.Catalog(lake.CATALOG, uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/warehouse")
    declared = pipeline(a="long")
    table = lake.ensure_table(catalog, declared)
    table.append(lake.arrow_schema(declared).empty_table())
    behind = timedelta(hours=2)

    class Behind(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) - behind

    monkeypatch.setattr(update, "datetime", Behind)
    monkeypatch.setattr(snapshots, "time", SimpleNamespace(time=lambda: time.time() - behind.total_seconds()))
    before = table.metadata
    for _ in range(2):
        table.append(lake.arrow_schema(declared).empty_table())
        table.transaction().set_properties(a="b").commit_transaction()
        found = catalog.load_table(declared.table).metadata
        assert found.last_updated_ms >= found.snapshot_log[-1].timestamp_ms >= before.last_updated_ms
        for log in (found.snapshot_log, found.metadata_log):
            times = [entry.timestamp_ms for entry in log]
            assert times == sorted(times)
    assert len(found.snapshots) == len(before.snapshots) + 2
