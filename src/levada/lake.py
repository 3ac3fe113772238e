"""The lake: one Iceberg table a pipeline, in a SQL catalog that PyIceberg, Spark, Flink and DuckDB read alike.

The sink writes these tables and training reads them; what both must agree on (names, types, partitioning) is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, StagedTable, Table
from pyiceberg.table.update import AddSnapshotUpdate, TableRequirement, TableUpdate
from pyiceberg.transforms import HourTransform
from pyiceberg.typedef import Identifier
from pyiceberg.types import (
    BooleanType,
    DoubleType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from levada.config import Settings, required
from levada.errors import UserError
from levada.pipeline import Pipeline

CATALOG: Final = "lake"
"""Name of the catalog. An engine that uses another name sees an empty catalog, and nothing says so."""

_UTC: Final = pa.timestamp("us", tz="UTC")
_ARROW: Final = {
    "string": pa.string(),
    "long": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": _UTC,
}
_ICEBERG: Final[dict[str, IcebergType]] = {
    "string": StringType(),
    "long": LongType(),
    "double": DoubleType(),
    "boolean": BooleanType(),
    "timestamp": TimestamptzType(),
}
# Column, Arrow type, Iceberg type: where each event came from and when.
_ORIGIN: Final[tuple[tuple[str, pa.DataType, IcebergType], ...]] = (
    ("_event_id", pa.string(), StringType()),
    ("_event_time", _UTC, TimestamptzType()),
    ("_ingested_at", _UTC, TimestamptzType()),
    ("_topic", pa.string(), StringType()),
    ("_partition", pa.int32(), IntegerType()),
    ("_offset", pa.int64(), LongType()),
)
_PROPERTIES: Final = {
    "format-version": "2",
    # PyIceberg rebases a stale append onto the new head and repeats it; a sink that lost its table must fail instead.
    "commit.retry.num-retries": "0",
    # Each commit copies the metadata; without these it grows with the age of the table.
    "commit.manifest-merge.enabled": "true",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "write.parquet.compression-codec": "zstd",
    # Ids and measures never repeat: the sooner the writer gives up its dictionary, the smaller and cheaper the file.
    "write.parquet.dict-size-bytes": "32768",
}


class LakeError(UserError):
    """A table that does not fit its pipeline; the message says what to do."""


class Catalog(SqlCatalog):
    """The SQL catalog, on machines whose clock may be set back: the times in a table's metadata only go on.

    Java's Iceberg, which Spark and Flink read with, does not load a table whose log goes back by more than a minute,
    and which snapshots are kept goes by their times.
    """

    def _update_and_stage_table(
        self,
        current_table: Table | None,
        table_identifier: Identifier,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> StagedTable:
        if current_table is None:
            return super()._update_and_stage_table(None, table_identifier, requirements, updates)
        last = current_table.metadata.last_updated_ms
        updates = tuple(_after(last, update) if isinstance(update, AddSnapshotUpdate) else update for update in updates)
        staged = super()._update_and_stage_table(current_table, table_identifier, requirements, updates)
        if staged.metadata.last_updated_ms < last:
            staged.metadata = staged.metadata.model_copy(update={"last_updated_ms": last})
        return staged


def _after(last: int, update: AddSnapshotUpdate) -> AddSnapshotUpdate:
    snapshot = update.snapshot
    # PyIceberg takes a table of the same time for one of no time, and asks the clock.
    later = snapshot.model_copy(update={"timestamp_ms": max(snapshot.timestamp_ms, last + 1)})
    return update.model_copy(update={"snapshot": later})


def catalog(settings: Settings) -> Catalog:
    """The catalog, in the PostgreSQL database and on the bucket that the settings name.

    Raises:
        ConfigError: LEVADA_POSTGRES__* or LEVADA_S3__* is missing.
        sqlalchemy.exc.OperationalError: PostgreSQL cannot be reached.
    """
    postgres = required(settings.postgres, "LEVADA_POSTGRES__HOST")
    s3 = required(settings.s3, "LEVADA_S3__REGION")
    properties = {
        "uri": f"{postgres.url()}&connect_timeout=5",
        "schema_version": "v1",
        "pool_pre_ping": "true",
        "warehouse": f"s3://{s3.bucket_lake}/warehouse",
        "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO",
        "s3.region": s3.region,
        "s3.force-virtual-addressing": str(not s3.path_style).lower(),
        "s3.connect-timeout": "5",
        "s3.request-timeout": "20",
    }
    if s3.endpoint is not None:
        properties["s3.endpoint"] = s3.endpoint
    if (access_key := s3.access_key) is not None and (secret_key := s3.secret_key) is not None:
        properties |= {"s3.access-key-id": access_key, "s3.secret-access-key": secret_key}
    return Catalog(CATALOG, **properties)


def arrow_schema(pipeline: Pipeline) -> pa.Schema:
    """Schema of the rows a sink writes: the declared fields, then where the event came from.

    Declared fields are nullable even if events must have them, so that a later declaration can drop one.
    """
    fields = [pa.field(name, _ARROW[type_]) for name, type_ in pipeline.types.items()]
    return pa.schema([*fields, *(pa.field(name, arrow, nullable=False) for name, arrow, _ in _ORIGIN)])


def iceberg_schema(pipeline: Pipeline) -> Schema:
    """:func:`arrow_schema` in Iceberg's types."""
    columns = [(name, _ICEBERG[type_], False) for name, type_ in pipeline.types.items()]
    columns += [(name, iceberg, True) for name, _, iceberg in _ORIGIN]
    return Schema(
        *(
            NestedField(field_id=number, name=name, field_type=type_, required=needed)
            for number, (name, type_, needed) in enumerate(columns, start=1)
        )
    )


def partition_spec(schema: Schema) -> PartitionSpec:
    """Partitions by the hour of the event's own time, so that a late event lands where it belongs."""
    source = schema.find_field("_event_time")
    return PartitionSpec(
        PartitionField(source_id=source.field_id, field_id=1000, transform=HourTransform(), name="_event_time_hour")
    )


def ensure_table(catalog: SqlCatalog, pipeline: Pipeline) -> Table:
    """The pipeline's table, created if missing; fields that the declaration added become columns.

    Raises:
        LakeError: a field has another type in the table than in the declaration.
    """
    schema = iceberg_schema(pipeline)
    catalog.create_namespace_if_not_exists(pipeline.table[0])
    table = catalog.create_table_if_not_exists(
        pipeline.table, schema=schema, partition_spec=partition_spec(schema), properties=_PROPERTIES
    )
    present = {field.name: field.field_type for field in table.schema().fields}
    for field in schema.fields:
        if field.name in present and present[field.name] != field.field_type:
            raise LakeError(
                f"table {'.'.join(pipeline.table)}: column {field.name} is {present[field.name]}, the declaration of "
                f"pipeline {pipeline.name} says {field.field_type}: give the field another name or its old type"
            )
    if new := [field for field in schema.fields if field.name not in present]:
        with table.update_schema() as update:
            for field in new:
                update.add_column(field.name, field.field_type)
    return table


def newest(table: Table, count: int, names: Sequence[str]) -> pa.Table:
    """The rows that came last, in no order: whole files from the newest on, until they hold ``count`` rows.

    Args:
        table: a table as :func:`ensure_table` makes it.
        count: how many there should be.
        names: the columns; one that the table does not have is left out.
    """
    ingested = table.schema().find_field("_ingested_at").field_id

    def came(task: FileScanTask) -> int:
        raw = (task.file.upper_bounds or {}).get(ingested)
        return 0 if raw is None else int(from_bytes(TimestamptzType(), raw))

    tasks, rows = [], 0
    for task in sorted(table.scan().plan_files(), key=came, reverse=True):
        if rows >= count:
            break
        tasks.append(task)
        rows += task.file.record_count
    known = [name for name in names if name in table.schema().column_names]
    return ArrowScan(table.metadata, table.io, table.schema().select(*known), AlwaysTrue()).to_table(tasks)
