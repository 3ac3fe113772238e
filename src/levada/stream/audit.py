"""Counting what numbered events became: rows, repeated rows, missing rows, and their order in each key.

A drill numbers its events. Batch ``b`` of connection ``c`` has the idempotency key ``<prefix>c<c>-b<b>``, and its
lines are the next events of the connection's writers, who take turns; so an event id tells connection, batch and line,
and whoever knows how many there were can say what is missing without a list.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from itertools import chain, product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import StartsWith
from pyiceberg.io.pyarrow import ArrowScan

from levada.pipeline import Pipeline

_ID: Final = re.compile(r"c(\d+)-b(\d+)[^0-9]+(\d+)")
_NOWHERE: Final = -1


@dataclass(frozen=True)
class Audit:
    """What a table holds of the events of one prefix."""

    rows: int
    events: int
    """Different event ids."""
    repeated: int
    """Rows beyond the first of their event id."""
    missing: int
    """Events that were to be there and are not."""
    disordered: int
    """Events that lie before an earlier event of their writer, or in another partition than it."""
    first_missing: tuple[str, ...]
    """Ids of at most ten of the missing events, up to the line."""

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def audit(
    catalog: SqlCatalog, pipeline: Pipeline, prefix: str, *, connections: int, batches: int, lines: int, writers: int
) -> Audit:
    """Count the events ``prefix`` of ``connections`` × ``batches`` × ``lines`` in the pipeline's table.

    Lines count from 1, connections and batches from 0. Line ``n`` is of writer ``(n - 1) % writers`` of its connection;
    ``lines`` is a multiple of ``writers``.
    """
    shape = (connections, lines, batches)
    offsets: NDArray[np.int64] = np.full(shape, _NOWHERE, np.int64)
    partitions: NDArray[np.int32] = np.full(shape, _NOWHERE, np.int32)
    rows = repeated = 0
    table, ours = catalog.load_table(pipeline.table), StartsWith(term="_event_id", value=prefix)
    columns = table.schema().select("_event_id", "_partition", "_offset")
    scan = ArrowScan(table.metadata, table.io, columns, ours)
    # A file at a time: a reader of the whole scan holds them all, and a sink's pod has no room for many millions.
    for batch in chain.from_iterable(scan.to_record_batches([file]) for file in table.scan(ours).plan_files()):
        for event_id, partition, offset in zip(
            batch["_event_id"].to_pylist(), batch["_partition"].to_pylist(), batch["_offset"].to_pylist(), strict=True
        ):
            found = _ID.fullmatch(event_id, len(prefix))
            if found is None:
                continue
            place = (int(found[1]), int(found[3]) - 1, int(found[2]))
            rows += 1
            if offsets[place] != _NOWHERE:
                repeated += 1
                continue
            offsets[place], partitions[place] = offset, partition
    there = offsets != _NOWHERE
    gone = np.argwhere(~there)
    return Audit(
        rows=rows,
        events=int(there.sum()),
        repeated=repeated,
        missing=len(gone),
        disordered=_disordered(offsets, partitions, writers),
        first_missing=tuple(f"{prefix}c{c}-b{b} line {line + 1}" for c, line, b in gone[:10]),
    )


def _disordered(offsets: NDArray[np.int64], partitions: NDArray[np.int32], writers: int) -> int:
    """Events of a writer that do not follow the one before; missing ones are left out.

    Args:
        offsets: shape (connection, line, batch); -1 where there is none.
        partitions: the same of partitions.
        writers: of a connection.
    """
    wrong = 0
    for connection, writer in product(range(len(offsets)), range(writers)):
        # A writer at a time, and not the whole in another order: a drill may be large, and a sink's pod is not.
        of_writer, in_partition = (each[connection, writer::writers].T.ravel() for each in (offsets, partitions))
        there = of_writer != _NOWHERE
        wrong += int((np.diff(of_writer[there]) <= 0).sum())
        wrong += int((np.diff(in_partition[there]) != 0).sum())
    return wrong
