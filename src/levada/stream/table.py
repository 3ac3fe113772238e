"""The sink's hold on its table: claim partitions, append rows and offsets together, notice when another took them."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import structlog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table, TableProperties

from levada.errors import UserError
from levada.lake import arrow_schema, ensure_table
from levada.pipeline import Pipeline
from levada.stream.offsets import SUMMARY_KEY, Entry, Offsets, Partitions, newest_with_offsets, read

KEEP_SNAPSHOTS: Final = 20
_PATIENCE: Final = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0

log = structlog.get_logger(__name__)


class FencedError(UserError):
    """Another sink has claimed a partition; what this one holds must not be written."""


class Conflicts:
    """How to go on after a commit that came too late: wait a little longer each time, for a minute at most.

    Siblings commit every second or so and a commit takes about a tenth of that; the waits are random so that two that
    met once do not meet again.
    """

    def __init__(self, name: str, what: str) -> None:
        self._name, self._what = name, what
        self._begin = time.monotonic()
        self._wait = _FIRST_WAIT
        self.count = 0

    def pause(self) -> None:
        """Wait for the next attempt.

        Raises:
            CommitFailedException: there were conflicts for a minute.
        """
        self.count += 1
        if time.monotonic() - self._begin > _PATIENCE:
            raise CommitFailedException(f"table {self._name}: {self.count} conflicts in a row, {self._what} given up")
        time.sleep(random.uniform(0, self._wait))  # noqa: S311
        self._wait = min(_LONGEST_WAIT, self._wait * 2)


class OwnedTable:
    """One pipeline's table with the offsets that it has reached."""

    def __init__(self, catalog: SqlCatalog, pipeline: Pipeline) -> None:
        self._name = ".".join(pipeline.table)
        self._catalog = catalog
        self._schema = arrow_schema(pipeline)
        self._table = ensure_table(catalog, pipeline)
        self._topic_id = ""
        self._own: Partitions = {}
        self._offsets = self._read()
        self.conflicts = 0
        """Commits that came too late and were repeated."""

    @property
    def table(self) -> Table:
        """The Iceberg table as of the last commit or reload."""
        return self._table

    @property
    def offsets(self) -> Offsets | None:
        """What the table has reached; None if it holds data and nothing tells."""
        return self._offsets

    @property
    def rows(self) -> int:
        """Rows in the table, from the summary of its newest snapshot."""
        return self._total("total-records")

    @property
    def files(self) -> int:
        """Data files of the table, from the summary of its newest snapshot."""
        return self._total("total-data-files")

    def claim(self, topic_id: str, start: Mapping[int, int]) -> None:
        """Become the owner of these partitions, to be read from these offsets, by a commit without rows.

        A sink that claimed one of them before fails at its next commit.
        """
        conflicts = Conflicts(self._name, "claim")
        while True:
            offsets = self._offsets or Offsets({})
            known = _of(offsets.of(topic_id), start)
            epoch = 1 + max((entry.epoch for entry in offsets.of(topic_id).values()), default=0)
            own = {partition: Entry(offset, epoch) for partition, offset in start.items()}
            try:
                self._commit([], offsets.having(topic_id, own))
            except CommitFailedException:
                self._reload()
                if _of((self._offsets or Offsets({})).of(topic_id), start) != known:
                    raise  # the starting points have moved: the caller must look again
                conflicts.pause()
                continue
            self._topic_id, self._own = topic_id, own
            return

    def append(self, rows: pa.Table, reached: Mapping[int, int]) -> None:
        """Commit rows together with the next offset of each partition they were read from.

        Raises:
            FencedError: another sink owns one of the partitions now; nothing was written.
            Exception: any other error leaves open whether the commit landed: reload before reading on.
        """
        own = {
            partition: Entry(reached.get(partition, entry.next), entry.epoch) for partition, entry in self._own.items()
        }
        # Written once: what a conflict repeats is the commit, not the files. Clean-up commits before it deletes files
        # that are hours old, and the patience with conflicts is a minute: a commit that passes was prepared when these
        # were too young for it.
        files = self._write(rows)
        conflicts = Conflicts(self._name, "append")
        while True:
            try:
                self._commit(files, (self._offsets or Offsets({})).having(self._topic_id, own))
            except CommitFailedException:
                # Somebody else committed: a tag, a property, a compaction, a sibling with partitions of its own.
                # Only a change of *our* entries means that the table is no longer ours.
                self._reload()
                self._assert_own()
                self.conflicts += 1
                conflicts.pause()
                continue
            self._own = own
            return

    def expire(self) -> None:
        """Forget old snapshots, because each commit copies the list; tags, branches and our offsets stay."""
        if not _many(self._table):
            return
        try:
            # By a handle of its own: PyIceberg gives a handle that commits this the newest head whoever committed it,
            # and our next commit would pass although another sink's came between.
            fresh = self._catalog.load_table(self._table.name())
            expire(fresh)
        except CommitFailedException:
            log.info("snapshots not expired, another commit came first", table=self._name)
            return
        if fresh.metadata.current_snapshot_id == self._table.metadata.current_snapshot_id:
            self._table = fresh

    def _assert_own(self) -> None:
        now = (self._offsets or Offsets({})).of(self._topic_id)
        lost = {partition: now.get(partition) for partition, entry in self._own.items() if now.get(partition) != entry}
        if lost:
            told = ", ".join(
                f"partition {partition} (epoch {self._own[partition].epoch}, now "
                f"{'gone' if entry is None else entry.epoch})"
                for partition, entry in sorted(lost.items())
            )
            raise FencedError(f"table {self._name}: another sink has claimed {told}")

    def _write(self, rows: pa.Table) -> list[DataFile]:
        if not rows.num_rows:
            return []
        return list(
            _dataframe_to_data_files(
                table_metadata=self._table.metadata, df=rows, io=self._table.io, write_uuid=uuid.uuid4()
            )
        )

    def _commit(self, files: Sequence[DataFile], offsets: Offsets) -> None:
        no_retries(self._table)
        with self._table.transaction() as change:
            update = change.update_snapshot(snapshot_properties={SUMMARY_KEY: offsets.dump()})
            with update.merge_append() as append:
                for file in files:
                    append.append_data_file(file)
        self._offsets = offsets

    def _reload(self) -> None:
        self._table.refresh()
        self._offsets = self._read()

    def _read(self) -> Offsets | None:
        return read(self._table) if self._table.metadata.snapshots else Offsets({})

    def _total(self, key: str) -> int:
        snapshot = self._table.current_snapshot()
        if snapshot is None or snapshot.summary is None:
            return 0
        return int(snapshot.summary.additional_properties.get(key, 0))


def no_retries(table: Table) -> None:
    """Make PyIceberg tell about a conflict instead of putting a stale commit on top of a newer one."""
    # The property is set when the table is made, but anybody may reset it; PyIceberg reads it from this copy.
    table.metadata.properties[TableProperties.COMMIT_NUM_RETRIES] = "0"


def expire(table: Table) -> int:
    """Forget all but the newest ``KEEP_SNAPSHOTS`` snapshots, the newest that has offsets, tags and branches.

    Nothing is done until there are twice as many. Returns how many were forgotten; data files stay.

    Raises:
        CommitFailedException: another commit came first.
    """
    snapshots = sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.timestamp_ms)
    if not _many(table):
        return 0
    newest = newest_with_offsets(table) or snapshots[-1]
    # By their own times alone: the clock may have been set back behind them.
    keep_from = min(snapshots[-KEEP_SNAPSHOTS].timestamp_ms, newest.timestamp_ms)
    no_retries(table)
    try:
        table.maintenance.expire_snapshots().older_than(datetime.fromtimestamp(keep_from / 1000, UTC)).commit()
    except ValueError as error:  # a snapshot that another has forgotten already
        raise CommitFailedException(str(error)) from error
    return len(snapshots) - len(table.metadata.snapshots)


def _many(table: Table) -> bool:
    return len(table.metadata.snapshots) >= 2 * KEEP_SNAPSHOTS


def _of(partitions: Partitions, wanted: Mapping[int, object]) -> Partitions:
    return {partition: entry for partition, entry in partitions.items() if partition in wanted}
