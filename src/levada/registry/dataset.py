"""Rows as a model sees them, and the split that lets no row be on both sides."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from numpy.typing import NDArray

from levada.registry.data import EVENT_ID, EVENT_TIME, INGESTED_AT, declared_model, features_of, judged_fields
from levada.registry.errors import NotEnoughData

if TYPE_CHECKING:
    from levada.pipeline import Pipeline
    from levada.scoring import Feature

HELD_OUT: Final = 5
"""One row of this many is held out."""
_NAMED: Final = 10
_NAME: Final = 100
"""How many left-out classes are named, and with how many characters."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Dataset:
    """Rows with their label; ``columns`` as in :data:`levada.scoring.Columns`, all arrays of one length n."""

    features: tuple[Feature, ...]
    label: str
    columns: dict[str, NDArray[Any]]
    labels: NDArray[Any]
    """Shape (n,): float64 for a regression, else the classes as they are."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Dataset:
        """The rows that a mask or an array of positions names."""
        chosen = {name: column[rows] for name, column in self.columns.items()}
        return Dataset(self.features, self.label, chosen, self.labels[rows])

    def digests(self, names: Iterable[str] | None = None, *, label: bool = False) -> NDArray[np.uint64]:
        """A hash of the values of each row, shape (n,): equal rows have equal ones, so both zeros and all NaNs do.

        It does not hang on the order of the columns: charts render declarations with their fields sorted.

        Args:
            names: the columns that count; all by default.
            label: whether the label counts too.
        """
        frame = pd.DataFrame({name: self.columns[name] for name in sorted(names or self.columns)})
        if label:
            frame[self.label] = self.labels
        hashed: NDArray[np.uint64] = pd.util.hash_pandas_object(frame, index=False).to_numpy()
        return hashed

    def to_arrow(self) -> pa.Table:
        """The rows as float64 (missing is NaN) and string columns, features first and the label last."""
        columns = {name: pa.array(column) for name, column in self.columns.items()}
        return pa.table({**columns, self.label: pa.array(self.labels.tolist())})

    def to_parquet(self) -> bytes:
        """:meth:`to_arrow` as one Parquet file; the same rows always give the same bytes."""
        target = io.BytesIO()
        pq.write_table(self.to_arrow(), target)
        return target.getvalue()

    @classmethod
    def from_parquet(cls, raw: bytes, features: tuple[Feature, ...], label: str) -> Dataset:
        """Read what :meth:`to_parquet` wrote; ``features`` may be fewer."""
        return cls.from_arrow(pq.read_table(io.BytesIO(raw)), features, label)

    @classmethod
    def from_arrow(cls, table: pa.Table, features: tuple[Feature, ...], label: str) -> Dataset:
        """Take features and label out of a table."""
        columns = {}
        for feature in features:
            column = table[feature.name]
            if feature.type == "string":
                columns[feature.name] = np.array(column.fill_null("").to_pylist(), dtype=object)
            else:
                columns[feature.name] = column.cast(pa.float64()).to_numpy().astype(np.float64)
        return cls(features, label, columns, table[label].to_numpy())


@dataclass(frozen=True)
class Sides:
    """One snapshot's rows, and the side of the split that each is on."""

    every: Dataset
    """All rows, with every field that may be a feature."""
    ids: pa.ChunkedArray
    """Event id of each row."""
    came: NDArray[np.int64]
    """When each row came to the lake, shape (n,), microseconds since 1970."""
    training: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    """Shapes (n,). A row that equals a held-out one, or one of the frozen evaluation set, is on no side at all."""
    left_out: dict[Any, int]
    """Class → its rows, for classes that had no row on one of the sides: they are on neither."""

    @property
    def left_out_text(self) -> str:
        """:attr:`left_out` for a log line or a parameter; the most frequent are named, whoever sends thousands."""
        ordered = sorted(self.left_out.items(), key=lambda item: (-item[1], str(item[0])))
        named = [f"{str(name)[:_NAME]} ({count})" for name, count in ordered[:_NAMED]]
        return ", ".join(named) + (f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else "")


def sides(rows: pa.Table, pipeline: Pipeline, frozen: Dataset | None = None) -> Sides:
    """Split a snapshot as the pipeline declares.

    By content, the side of a row hangs on a hash of its feature values alone: what is held out from one training is
    held out from every other with these features. By group it hangs on the hash of a field, by time on whether the
    row is among the newest fifth. In all three, training keeps no row whose features equal those of a held-out or a
    frozen row, and a class that lacks a side is on neither: one event with a new label must not stop all training.

    Args:
        rows: a table as :func:`levada.registry.data.read_at` gives it.
        pipeline: says which fields are features and how to split.
        frozen: the frozen evaluation set, if there is one.
    """
    model = declared_model(pipeline)
    every = Dataset.from_arrow(rows, judged_fields(pipeline), model.label)
    if model.gate.regression:
        every = Dataset(every.features, every.label, every.columns, every.labels.astype(np.float64))
    names = pipeline.features
    content = every.digests(names)
    if model.split.by == "group":
        field = str(model.split.field)
        groups = pd.Series(rows[field].to_pandas())
        held_out = pd.util.hash_pandas_object(groups, index=False).to_numpy() % HELD_OUT == 0
    elif model.split.by == "time":
        times = rows[EVENT_TIME].cast(pa.int64()).to_numpy()
        held_out = times > np.quantile(times, 1 - 1 / HELD_OUT)
    else:
        held_out = pd.util.hash_array(content) % HELD_OUT == 0
    training = ~held_out & ~np.isin(content, content[held_out])
    if frozen is not None:
        # A declaration may have gained features since the set was frozen: what both know decides.
        shared = [name for name in names if name in frozen.columns]
        training &= ~np.isin(every.digests(shared), frozen.digests(shared))
    left_out: dict[Any, int] = {}
    if not model.gate.regression:
        place, classes = pd.factorize(every.labels)
        counted = [np.bincount(place[side], minlength=len(classes)) for side in (training, held_out)]
        rare = np.minimum(*counted) == 0
        total = np.bincount(place, minlength=len(classes))
        left_out = dict(zip(classes[rare].tolist(), total[rare].tolist(), strict=True))
        training, held_out = training & ~rare[place], held_out & ~rare[place]
    came = rows[INGESTED_AT].cast(pa.int64()).to_numpy()
    return Sides(every, rows[EVENT_ID], came, training, held_out, left_out)


def trainable(split: Sides, pipeline: Pipeline) -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows, features and label only.

    Raises:
        NotEnoughData: a side is empty, or fewer than two classes are on both.
    """
    features = features_of(pipeline)
    narrow = Dataset(
        features, split.every.label, {f.name: split.every.columns[f.name] for f in features}, split.every.labels
    )
    training, held_out = narrow.take(split.training), narrow.take(split.held_out)
    regression = declared_model(pipeline).gate.regression
    if split.left_out:
        log.warning(
            "classes left out, they are not among both training and held-out rows",
            pipeline=pipeline.name, label=narrow.label, rows=split.left_out_text,
        )  # fmt: skip
    if not regression and len(set(training.labels.tolist())) < 2:
        raise NotEnoughData(
            f"{narrow.label}: a model needs two classes with training and held-out rows; left out are "
            f"{split.left_out_text or 'none'}: more rows are needed"
        )
    for there, side in ((training, "training"), (held_out, "held-out")):
        if not len(there):
            raise NotEnoughData(f"there is no {side} row: more rows are needed")
    return training, held_out


def newer_than(split: Sides, known: pa.ChunkedArray | None) -> NDArray[np.bool_]:
    """Which rows are not among the events ``known``, shape (n,); all where nothing is known."""
    if known is None:
        return np.ones(len(split.every), dtype=bool)
    mask: NDArray[np.bool_] = pc.invert(pc.is_in(split.ids, value_set=known.combine_chunks())).to_numpy()
    return mask
