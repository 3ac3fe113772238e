"""What a training reads: one snapshot of the lake, each event once, split so that no row is on both sides."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from levada.registry.errors import NotEnoughData, TrainingError
from levada.scoring import Feature

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from levada.pipeline import Model, Pipeline

MIN_ROWS: Final = 30
HELD_OUT: Final = 5
"""One row of this many is held out."""
PINNED: Final = timedelta(days=90)
"""How long a snapshot that was trained on is kept by its tag."""


def declared_model(pipeline: Pipeline) -> Model:
    """The pipeline's model block.

    Raises:
        TrainingError: it has none.
    """
    if pipeline.model is None:
        raise TrainingError(f"pipeline {pipeline.name} declares no model: add a model block with a label")
    return pipeline.model


def features_of(pipeline: Pipeline) -> tuple[Feature, ...]:
    """The model inputs that the declaration asks for."""
    fields = pipeline.fields
    return tuple(Feature(name, fields[name].type, fields[name].required) for name in pipeline.features)


@dataclass(frozen=True)
class Dataset:
    """Rows with their label; ``columns`` as in :data:`levada.scoring.Columns`, all arrays of one length."""

    features: tuple[Feature, ...]
    label: str
    columns: dict[str, NDArray[Any]]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, mask: NDArray[np.bool_]) -> Dataset:
        """The rows where ``mask`` is true."""
        chosen = {name: column[mask] for name, column in self.columns.items()}
        return Dataset(self.features, self.label, chosen, self.labels[mask])

    def split(self) -> tuple[Dataset, Dataset]:
        """Training rows and held-out rows.

        The side of a row hangs on a hash of its feature values alone: equal rows never cross, and a row held out
        from one training is held out from every other, so a champion has not seen a challenger's evaluation set.

        Raises:
            NotEnoughData: a class has no row on one side.
        """
        rows = zip(*(self.columns[feature.name].tolist() for feature in self.features), strict=True)
        digests = (hashlib.blake2b(repr(row).encode(), digest_size=8).digest() for row in rows)
        held_out = np.fromiter((int.from_bytes(digest) % HELD_OUT == 0 for digest in digests), bool, len(self))
        train, evaluation = self.take(~held_out), self.take(held_out)
        for rows_there, side in ((train, "training"), (evaluation, "held-out")):
            absent = sorted(set(self.labels.tolist()) - set(rows_there.labels.tolist()), key=str)
            if absent:
                raise NotEnoughData(
                    f"{self.label}: no {side} row for {', '.join(map(str, absent))}: more rows are needed"
                )
        return train, evaluation

    def to_parquet(self) -> bytes:
        """The rows as one Parquet file, features first and the label last."""
        columns = {name: pa.array(column) for name, column in self.columns.items()}
        target = io.BytesIO()
        pq.write_table(pa.table({**columns, self.label: pa.array(self.labels.tolist())}), target)
        return target.getvalue()

    @classmethod
    def from_parquet(cls, raw: bytes, features: tuple[Feature, ...], label: str) -> Dataset:
        """Read what :meth:`to_parquet` wrote."""
        return cls.from_arrow(pq.read_table(io.BytesIO(raw)), features, label)

    @classmethod
    def from_arrow(cls, table: pa.Table, features: tuple[Feature, ...], label: str) -> Dataset:
        """Take features and label out of a table; rows without a label are left out."""
        table = table.filter(pc.is_valid(table[label]))
        columns = {}
        for feature in features:
            column = table[feature.name]
            if feature.type == "string":
                columns[feature.name] = np.array(column.fill_null("").to_pylist(), dtype=object)
            else:
                columns[feature.name] = column.cast(pa.float64()).to_numpy().astype(np.float64)
        return cls(features, label, columns, table[label].to_numpy())


@retry(
    retry=retry_if_exception_type(CommitFailedException),
    stop=stop_after_attempt(10),
    wait=wait_random_exponential(multiplier=0.1, max=5),
    reraise=True,
)
def pin(table: Table, run: str) -> int:
    """Tag the current snapshot for a run and return its id; a run that was pinned before keeps its snapshot.

    The sink commits to the same table all the time; losing that race means to look again.

    Raises:
        NotEnoughData: the table has no snapshot.
    """
    tag = "train-" + re.sub(r"[^A-Za-z0-9_.-]", "-", run)
    table.refresh()
    if (known := table.metadata.refs.get(tag)) is not None:
        return known.snapshot_id
    snapshot = table.current_snapshot()
    if snapshot is None:
        raise NotEnoughData(f"table {'.'.join(table.name())} is empty: post events and run again")
    age = int(PINNED.total_seconds() * 1000)
    table.manage_snapshots().create_tag(snapshot.snapshot_id, tag, max_ref_age_ms=age).commit()
    return snapshot.snapshot_id


def read(catalog: Catalog, pipeline: Pipeline, run: str) -> tuple[int, Dataset]:
    """The labelled rows of a pipeline's table, each event once, and the id of the snapshot they are from.

    Raises:
        NotEnoughData: there is no table yet, or too little in it.
        TrainingError: the table lacks a declared field.
    """
    label = declared_model(pipeline).label
    try:
        table = catalog.load_table(pipeline.table)
    except NoSuchTableError as error:
        raise NotEnoughData(f"table {'.'.join(pipeline.table)} does not exist yet: post events first") from error
    wanted = (*pipeline.features, label, "_event_id")
    absent = [name for name in wanted if name not in table.schema().column_names]
    if absent:
        raise TrainingError(f"table {'.'.join(pipeline.table)} has no column {', '.join(absent)}: does the sink run?")
    snapshot = pin(table, run)
    rows = table.scan(snapshot_id=snapshot, selected_fields=wanted).to_arrow()
    # Sorted, so that the same snapshot always gives the same model; an event id is kept once.
    rows = rows.sort_by("_event_id")
    ids = rows["_event_id"].to_numpy()
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    data = Dataset.from_arrow(rows.filter(pa.array(first)), features_of(pipeline), label)
    if len(data) < MIN_ROWS:
        raise NotEnoughData(
            f"table {'.'.join(pipeline.table)} has {len(data)} labelled rows at snapshot {snapshot}, "
            f"training needs {MIN_ROWS}: post more events and run again"
        )
    if len(set(data.labels.tolist())) < 2:
        raise NotEnoughData(f"{label} has one value only in {'.'.join(pipeline.table)}: a model needs two classes")
    return snapshot, data
