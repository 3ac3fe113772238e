"""The frozen evaluation set: rows no trainer sees, on which champion and challenger are compared.

It lies beside the champion that it was frozen with or carried on to, and its digest is in that version's signed
report. It begins with the rows held out from the first champion's training and grows only when a person approves a
version, by the rows held out from that one: nobody who merely sends events can change what judges.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from levada.registry.dataset import Dataset
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
        """Read a file; a field that was declared later, or is text now and was a number, is not among its columns."""
        table = pq.read_table(io.BytesIO(raw))
        stored = {feature.name: feature.type == "string" for feature in _stored(table, label)}
        there = tuple(field for field in fields if stored.get(field.name) == (field.type == "string"))
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
        digests = both.digests(label=True)
        if np.isin(digests[len(self.rows) :], digests[: len(self.rows)]).all():
            return self
        return Frozen.of(both)


def read_stored(raw: bytes, fields: tuple[Feature, ...], label: str) -> Dataset:
    """Read a file with every column that it has, those that are not declared so any more as they were stored."""
    table = pq.read_table(io.BytesIO(raw))
    declared = {field.name: field for field in fields}
    there = []
    for stored in _stored(table, label):
        now = declared.get(stored.name, stored)
        there.append(now if (now.type == "string") == (stored.type == "string") else stored)
    return Dataset.from_arrow(table, tuple(there), label)


def _stored(table: pa.Table, label: str) -> list[Feature]:
    return [
        Feature(field.name, "string" if pa.types.is_string(field.type) else "double", False)
        for field in table.schema
        if field.name != label
    ]


def _distinct(rows: Dataset) -> Dataset:
    """Rows that are equal once; of more than the set may have, each has the same chance to stay, old or new.

    The draw hangs on a hash of all rows: the same rows give the same set, and who sends a few cannot choose it.
    """
    distinct, first = np.unique(rows.digests(label=True), return_index=True)
    if len(first) > LARGEST:
        seed = int.from_bytes(sha256(distinct.tobytes()).digest())
        first = np.random.default_rng(seed).choice(first, LARGEST, replace=False)
    return rows.take(np.sort(first))
