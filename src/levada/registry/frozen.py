"""The frozen evaluation set: rows no trainer sees, on which champion and challenger are compared.

It lies beside the champion that it was frozen with or carried on to, and its digest is in that version's signed
report. It begins with the rows held out from the first champion's training and grows only when a person approves a
version, by the rows held out from that one: nobody who merely sends events can change what judges.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow.parquet as pq

from levada.registry.dataset import Dataset

if TYPE_CHECKING:
    from levada.scoring import Feature

FROZEN_FILE: Final = "frozen/rows.parquet"
LARGEST: Final = 100_000
"""Rows that a frozen set has at most; more tell no more, and every gate reads them all."""


@dataclass(frozen=True)
class Frozen:
    """An evaluation set and its file."""

    rows: Dataset
    raw: bytes
    """The file, Parquet."""

    @property
    def sha256(self) -> str:
        """Hex digest of the file."""
        return sha256(self.raw).hexdigest()

    @classmethod
    def read(cls, raw: bytes, fields: tuple[Feature, ...], label: str) -> Frozen:
        """Read a file; a field that was declared later is not among its columns."""
        table = pq.read_table(io.BytesIO(raw))
        there = tuple(field for field in fields if field.name in table.column_names)
        return cls(Dataset.from_arrow(table, there, label), raw)

    @classmethod
    def of(cls, rows: Dataset) -> Frozen:
        """Freeze rows, those that are equal once."""
        rows = _distinct(rows)
        return cls(rows, rows.to_parquet())

    def grown(self, more: Dataset) -> Frozen:
        """This set with more rows; the same set if it has them all.

        Where a field was declared since, the old rows do not have it and only the new ones are kept.
        """
        if {*self.rows.columns} != {*more.columns}:
            return Frozen.of(more)
        both = Dataset(
            more.features,
            more.label,
            {name: np.concatenate([self.rows.columns[name], column]) for name, column in more.columns.items()},
            np.concatenate([self.rows.labels, more.labels]),
        )
        grown = _distinct(both)
        return self if len(grown) == len(self.rows) else Frozen(grown, grown.to_parquet())


def _distinct(rows: Dataset) -> Dataset:
    _, first = np.unique(rows.digests(label=True), return_index=True)
    return rows.take(np.sort(first)[:LARGEST])
