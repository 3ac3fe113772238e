"""Upkeep of one pipeline's table: few files in each closed hour, few snapshots, nothing that is nobody's.

It runs beside the sinks and never stops them: it commits like everybody else, by compare-and-set on the table's head,
loses to whoever comes first and tries again. Readers see the same rows before, during and after; a file that left the
table is kept for hours, for those who began to read earlier.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import structlog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, ValidationException
from pyiceberg.io.pyarrow import (
    PyArrowFileIO,
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import TimestamptzType

from levada.errors import UserError
from levada.pipeline import Pipeline
from levada.stream.offsets import SUMMARY_KEY, newest_with_offsets
from levada.stream.table import Conflicts, expire, no_retries

TARGET_BYTES: Final = 64 * 1024 * 1024
"""Size at which a compacted file is closed."""
QUIET_SECONDS: Final = 300.0
"""An hour is closed once it is over and nothing came into it for this long."""
UNCOMMITTED_SECONDS: Final = 1800.0
"""Files that wait longer than this for their commit are given up by the one who wrote them."""
ORPHAN_SECONDS: Final = 7200.0
"""A file that no snapshot has named for this long is nobody's."""
_ROW_GROUP: Final = 131_072
_ROW_GROUP_BYTES: Final = 32 * 1024 * 1024
"""A row group ends with the batch that reaches one of these; wide rows would fill the memory before they are many."""
_READ_ROWS: Final = 8_192  # of a file at once
_FIELD_ID: Final = b"PARQUET:field_id"
_HOUR: Final = 3600
_UNREFERENCED: Final = "levada-unreferenced.json"

log = structlog.get_logger(__name__)


class MaintenanceError(UserError):
    """Upkeep that cannot be done; the message says why."""


@dataclass
class Report:
    """What one run did."""

    hours: int = 0
    """Hours whose files were compacted."""
    files_before: int = 0
    files_after: int = 0
    """Files of those hours, before and after."""
    snapshots: int = 0
    """Snapshots that were forgotten."""
    removed: int = 0
    """Files removed because nothing names them."""
    waiting: int = 0
    """Files that nothing names and that are too young to be removed."""
    skipped: list[str] = field(default_factory=list)
    """Hours left for the next run, and why."""


def maintain(
    catalog: SqlCatalog,
    pipeline: Pipeline,
    *,
    now: Callable[[], float] = time.time,
    target_bytes: int = TARGET_BYTES,
    quiet_seconds: float = QUIET_SECONDS,
    orphan_seconds: float = ORPHAN_SECONDS,
) -> Report:
    """Compact closed hours, forget old snapshots, remove files that nothing names.

    Args:
        catalog: where the table is.
        pipeline: whose table it is; a table that no sink has made yet is nothing to do.
        now: seconds since 1970.
        target_bytes: size at which a compacted file is closed.
        quiet_seconds: how long nothing must have come into an hour.
        orphan_seconds: how long a file must have been unnamed, as seen by runs of this.
    """
    report = Report()
    try:
        table = catalog.load_table(pipeline.table)
    except NoSuchTableError:
        return report
    for hour in _worth_it(table, now(), target_bytes, quiet_seconds):
        _compact(table, hour, target_bytes, report)
    table.refresh()
    try:
        report.snapshots = expire(table)
    except CommitFailedException:
        log.info("snapshots not expired, another commit came first", table=".".join(pipeline.table))
    _clean(table, now(), orphan_seconds, report)
    return report


@dataclass(frozen=True)
class _Hour:
    number: int
    """Hours since 1970."""
    tasks: list[FileScanTask]
    """The small files of the hour, oldest first."""

    @property
    def name(self) -> str:
        return datetime.fromtimestamp(self.number * _HOUR, UTC).strftime("%Y-%m-%dT%H")


def _worth_it(table: Table, now: float, target: int, quiet: float) -> list[_Hour]:
    """Closed hours with more files than ceil(bytes / target) + 1."""
    ingested = table.schema().find_field("_ingested_at").field_id

    def bound(task: FileScanTask, bounds: dict[int, bytes] | None) -> float:
        raw = (bounds or {}).get(ingested)
        return 0.0 if raw is None else float(from_bytes(TimestamptzType(), raw)) / 1e6

    spec = table.metadata.default_spec_id
    hours: dict[int, list[FileScanTask]] = {}
    for task in table.scan().plan_files():
        if task.file.spec_id == spec and not task.delete_files:
            hours.setdefault(task.file.partition[0], []).append(task)
    found = []
    for number, tasks in sorted(hours.items()):
        if (number + 1) * _HOUR + quiet > now:
            continue
        if max(bound(task, task.file.upper_bounds) for task in tasks) + quiet > now:
            continue
        whole = sum(task.file.file_size_in_bytes for task in tasks)
        small = [task for task in tasks if task.file.file_size_in_bytes < target]
        if len(tasks) > math.ceil(whole / target) + 1 and len(small) > 1:
            found.append(_Hour(number, sorted(small, key=lambda task: bound(task, task.file.lower_bounds))))
    return found


def _compact(table: Table, hour: _Hour, target: int, report: Report) -> None:
    """Replace the small files of an hour by few; the hour is left alone if one of them was replaced meanwhile."""
    name = ".".join(table.name()[-2:])
    old = [task.file for task in hour.tasks]
    begin = time.monotonic()
    new = list(_rewritten(table, hour.tasks, target))
    if sum(file.record_count for file in new) != sum(file.record_count for file in old):
        raise MaintenanceError(f"table {name}, hour {hour.name}: the compacted files hold another number of rows")
    conflicts = Conflicts(name, "compaction")
    while True:
        table.refresh()
        live = {task.file.file_path for task in table.scan().plan_files()}
        reason = None
        if any(file.file_path not in live for file in old):
            reason = "its files have changed"
        elif time.monotonic() - begin > UNCOMMITTED_SECONDS:
            reason = "it took too long"
        if reason is None:
            try:
                _replace(table, old, new)
            except CommitFailedException:
                try:
                    conflicts.pause()
                    continue
                except CommitFailedException as error:
                    reason = str(error)
            except ValidationException as error:
                reason = str(error)
        if reason is not None:
            for file in new:  # nothing names them
                table.io.delete(file.file_path)
            report.skipped.append(f"{hour.name}: {reason}")
            return
        log.info("hour compacted", table=name, hour=hour.name, files=len(old), into=len(new), conflicts=conflicts.count)
        report.hours += 1
        report.files_before += len(old)
        report.files_after += len(new)
        return


def _replace(table: Table, old: list[DataFile], new: list[DataFile]) -> None:
    no_retries(table)
    with table.transaction() as change:
        update = change.update_snapshot(snapshot_properties=_offsets(table))
        with update.overwrite() as overwrite:
            for file in old:
                overwrite.delete_data_file(file)
            for file in new:
                overwrite.append_data_file(file)


def _offsets(table: Table) -> dict[str, str]:
    """What a commit of ours must carry on: who reads the offsets looks at the newest snapshot that has them."""
    newest = newest_with_offsets(table)
    if newest is None or newest.summary is None:
        return {}
    return {SUMMARY_KEY: newest.summary.additional_properties[SUMMARY_KEY]}


def _rewritten(table: Table, tasks: list[FileScanTask], target: int) -> Iterator[DataFile]:
    """The rows of these files in files of ``target`` bytes, a row group in memory at a time."""
    first = tasks[0].file
    folder = first.file_path.rpartition("/")[0]
    # Short offsets, as the sink writes them: readers get the types that a file was written with.
    schema = pa.schema(
        [
            own.with_type(pa.string()) if pa.types.is_large_string(own.type) else own
            for own in schema_to_pyarrow(table.schema(), include_field_ids=True)
        ]
    )
    batches = _row_groups(batch for task in tasks for batch in _rows(table, task.file.file_path, schema))
    pending = next(batches, None)
    while pending is not None:
        path = f"{folder}/compacted-{uuid.uuid4()}.parquet"
        output = table.io.new_output(path)
        with output.create() as stream:
            writer = pq.ParquetWriter(stream, schema, compression="zstd", store_decimal_as_integer=True)
            while pending is not None:
                writer.write_table(pending, row_group_size=_ROW_GROUP)
                pending = next(batches, None)
                if stream.tell() >= target:
                    break
            writer.close()
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=writer.writer.metadata,
            stats_columns=compute_statistics_plan(table.schema(), table.metadata.properties),
            parquet_column_mapping=parquet_path_to_id_mapping(table.schema()),
        )
        yield DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=first.partition,
            file_size_in_bytes=len(output),
            sort_order_id=None,
            spec_id=first.spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )


def _rows(table: Table, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a file, a few thousand at a time, with the columns that the table has now.

    PyIceberg's own scan decodes a file as a whole, and Arrow's reads far ahead; a small file may hold much.
    """
    with table.io.new_input(path).open() as stream:
        file = pq.ParquetFile(stream)
        # A file that Iceberg took over as it was has names only.
        places = {
            (field.metadata or {}).get(_FIELD_ID, field.name): place for place, field in enumerate(file.schema_arrow)
        }
        for batch in file.iter_batches(_READ_ROWS):
            columns = []
            for field in schema:
                place = places.get(field.metadata[_FIELD_ID], places.get(field.name))
                columns.append(
                    pa.nulls(len(batch), field.type) if place is None else batch.column(place).cast(field.type)
                )
            yield pa.Table.from_arrays(columns, schema=schema)


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= _ROW_GROUP or sum(own.nbytes for own in held) >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _clean(table: Table, now: float, orphan_seconds: float, report: Report) -> None:
    """Remove files that no snapshot, tag or metadata names and that runs have seen so for long enough.

    When a file was first seen unnamed is kept beside the metadata: the age of the file itself says nothing about
    readers who began before it was replaced.
    """
    named = _named(table)
    folder = table.location()
    filesystem, root = _filesystem(table, folder)
    listed = [
        info.path
        for part in ("data", "metadata")
        for info in filesystem.get_file_info(pafs.FileSelector(f"{root}/{part}", recursive=True, allow_not_found=True))
        if info.type == pafs.FileType.File and not info.path.endswith(_UNREFERENCED)
    ]
    unnamed = {path for path in listed if path not in named}
    ledger = f"{root}/metadata/{_UNREFERENCED}"
    seen = _read_ledger(filesystem, ledger)
    first = {path: seen.get(path, now) for path in unnamed}
    due = {path for path, since in first.items() if now - since >= orphan_seconds}
    if due and _fence(table):
        # No commit that was prepared before can pass now, and those prepared since find their files too old to name.
        # What was named meanwhile stays.
        due -= _named(table)
        for path in sorted(due):
            filesystem.delete_file(path)
            first.pop(path)
        report.removed = len(due)
        log.info("unnamed files removed", table=".".join(table.name()[-2:]), files=len(due))
    report.waiting = len(first)
    if first != seen:
        with filesystem.open_output_stream(ledger) as stream:
            stream.write(json.dumps(first).encode())


def _fence(table: Table) -> bool:
    """Make every commit that is under way fail, by a snapshot without files; False if one came first.

    A changed property would not do: what a commit asserts is the head of the branch.
    """
    no_retries(table)
    try:
        with table.transaction() as change:
            change.update_snapshot(snapshot_properties=_offsets(table)).merge_append().commit()
    except CommitFailedException:
        log.info("clean-up left for the next run, another commit came first")
        return False
    return True


def _named(table: Table) -> set[str]:
    """Paths of all files that the table's metadata leads to."""
    table.refresh()
    metadata = table.metadata
    names = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    names |= {file.statistics_path for file in [*metadata.statistics, *metadata.partition_statistics]}
    manifests = {}
    for snapshot in metadata.snapshots:
        names.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            manifests[manifest.manifest_path] = manifest
    names |= set(manifests)
    for manifest in manifests.values():
        names |= {entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)}
    return {_path(name, table) for name in names}


def _path(location: str, table: Table) -> str:
    return PyArrowFileIO.parse_location(location, table.io.properties)[2]


def _filesystem(table: Table, location: str) -> tuple[Any, str]:
    if not isinstance(table.io, PyArrowFileIO):
        raise MaintenanceError(f"table {table.name()}: files behind {type(table.io).__name__} cannot be listed")
    scheme, netloc, path = PyArrowFileIO.parse_location(location, table.io.properties)
    return table.io.fs_by_scheme(scheme, netloc), path.rstrip("/")


def _read_ledger(filesystem: Any, path: str) -> dict[str, float]:
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return {}
    try:
        with filesystem.open_input_stream(path) as stream:
            found: dict[str, float] = json.loads(stream.read())
    except ValueError:
        return {}  # cut short; all files wait once more
    return found
