"""What the frozen evaluation set keeps."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from levada.registry import frozen
from levada.registry.dataset import Dataset
from levada.registry.frozen import Frozen
from levada.scoring import Feature

FIELDS = (Feature("x", "double", True),)


def numbers(first: int, last: int) -> Dataset:
    return Dataset(FIELDS, "y", {"x": np.arange(first, last) / 7}, np.full(last - first, "a", dtype=object))


def test_a_full_set_takes_new_rows_as_evenly_as_it_keeps_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "LARGEST", 1000)
    full = Frozen.of(numbers(0, 1000))
    grown = full.grown(numbers(900, 2000))
    assert len(grown.rows) == 1000
    assert 430 < int(np.isin(grown.rows.columns["x"], full.rows.columns["x"]).sum()) < 570
    assert full.grown(numbers(900, 2000)).sha256 == grown.sha256
    assert 430 < int((Frozen.of(numbers(0, 2000)).rows.columns["x"] < 1000 / 7).sum()) < 570


def test_a_set_that_has_all_rows_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "LARGEST", 1000)
    full = Frozen.of(numbers(0, 2000))
    assert full.grown(full.rows.take(np.arange(50))) is full


def test_a_column_of_another_type_than_is_declared_is_not_among_the_rows() -> None:
    raw = io.BytesIO()
    pq.write_table(pa.table({"x": ["1", "b"], "y": ["a", "b"]}), raw)
    assert list(Frozen.read(raw.getvalue(), FIELDS, "y").rows.columns) == []
