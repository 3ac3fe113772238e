"""The sink's hold on its table: claim it, append rows and offsets in one commit, notice when another took it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import structlog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table, TableProperties

from levada.errors import UserError
from levada.lake import arrow_schema, ensure_table
from levada.pipeline import Pipeline
from levada.stream.offsets import SUMMARY_KEY, Entry, Offsets, Partitions, newest_with_offsets, read

KEEP_SNAPSHOTS: Final = 20
_ATTEMPTS: Final = 5

log = structlog.get_logger(__name__)


class FencedError(UserError):
    """Another sink has claimed the table; what this one holds must not be written."""


class OwnedTable:
    """One pipeline's table with the offsets that it has reached."""

    def __init__(self, catalog: SqlCatalog, pipeline: Pipeline) -> None:
        self._name = ".".join(pipeline.table)
        self._schema = arrow_schema(pipeline)
        self._table = ensure_table(catalog, pipeline)
        self._topic_id = ""
        self._own: Partitions = {}
        self._offsets = self._read()

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
        snapshot = self._table.current_snapshot()
        if snapshot is None or snapshot.summary is None:
            return 0
        return int(snapshot.summary.additional_properties.get("total-records", 0))

    def claim(self, topic_id: str, start: Mapping[int, int]) -> None:
        """Become the owner of these partitions, to be read from these offsets, by a commit without rows.

        A sink that claimed them before fails at its next commit.
        """
        for _ in range(_ATTEMPTS):
            offsets = self._offsets or Offsets({})
            known = offsets.of(topic_id)
            epoch = 1 + max((entry.epoch for entry in known.values()), default=0)
            own = {partition: Entry(offset, epoch) for partition, offset in start.items()}
            try:
                self._commit(self._schema.empty_table(), offsets.having(topic_id, own))
            except CommitFailedException:
                self._reload()
                if (self._offsets or Offsets({})).of(topic_id) != known:
                    raise  # the starting points have moved: the caller must look again
                continue
            self._topic_id, self._own = topic_id, own
            return
        raise CommitFailedException(f"table {self._name}: {_ATTEMPTS} conflicts in a row, claim given up")

    def append(self, rows: pa.Table, reached: Mapping[int, int]) -> None:
        """Commit rows together with the next offset of each partition they were read from.

        Raises:
            FencedError: another sink owns the partitions now; nothing was written.
            Exception: any other error leaves open whether the commit landed: reload before reading on.
        """
        own = {
            partition: Entry(reached.get(partition, entry.next), entry.epoch) for partition, entry in self._own.items()
        }
        for _ in range(_ATTEMPTS):
            try:
                self._commit(rows, (self._offsets or Offsets({})).having(self._topic_id, own))
            except CommitFailedException:
                # Somebody else committed: a tag, a property, a compaction, a sibling with partitions of its own.
                # Only a change of *our* entries means that the table is no longer ours.
                self._reload()
                now = (self._offsets or Offsets({})).of(self._topic_id)
                if any(now.get(partition) != entry for partition, entry in self._own.items()):
                    raise FencedError(f"table {self._name}: another sink has claimed its partitions") from None
                continue
            self._own = own
            return
        raise CommitFailedException(f"table {self._name}: {_ATTEMPTS} conflicts in a row")

    def expire(self) -> None:
        """Forget old snapshots, because each commit copies the list; tags, branches and our offsets stay."""
        snapshots = sorted(self._table.metadata.snapshots, key=lambda snapshot: snapshot.timestamp_ms)
        if len(snapshots) < 2 * KEEP_SNAPSHOTS:
            return
        newest = newest_with_offsets(self._table)
        keep_from = min(
            snapshots[-KEEP_SNAPSHOTS].timestamp_ms,
            snapshots[-1].timestamp_ms if newest is None else newest.timestamp_ms,
        )
        older = self._table.maintenance.expire_snapshots().older_than(datetime.fromtimestamp(keep_from / 1000, UTC))
        try:
            older.commit()
        except CommitFailedException:
            log.info("snapshots not expired, another commit came first", table=self._name)

    def _commit(self, rows: pa.Table, offsets: Offsets) -> None:
        # The property is set when the table is made, but anybody may reset it; PyIceberg reads it from this copy.
        self._table.metadata.properties[TableProperties.COMMIT_NUM_RETRIES] = "0"
        self._table.append(rows, snapshot_properties={SUMMARY_KEY: offsets.dump()})
        self._offsets = offsets

    def _reload(self) -> None:
        self._table.refresh()
        self._offsets = self._read()

    def _read(self) -> Offsets | None:
        return read(self._table) if self._table.metadata.snapshots else Offsets({})
