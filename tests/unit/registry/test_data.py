"""Reading the lake and splitting what was read."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException

from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import data
from levada.registry.data import Dataset
from levada.registry.errors import NotEnoughData, TrainingError
from levada.scoring import Feature

FEATURES = (Feature("x", "double", True), Feature("color", "string", True))
Post = Callable[..., None]


def dataset(rows: list[tuple[float, str]]) -> Dataset:
    columns = {
        "x": np.array([x for x, _ in rows], dtype=float),
        "color": np.array([color for _, color in rows], dtype=object),
    }
    return Dataset(FEATURES, "label", columns, np.array(["one"] * len(rows), dtype=object))


def keys(part: Dataset) -> set[tuple[Any, ...]]:
    return set(zip(*(part.columns[feature.name].tolist() for feature in FEATURES), strict=True))


@pytest.mark.row(45)
@given(st.integers())
def test_equal_rows_never_cross_the_split(seed: int) -> None:
    chance = random.Random(seed)
    rows = [(chance.randrange(60) / 10, chance.choice("abc")) for _ in range(400)]
    train, held_out = dataset(rows).split()
    assert len(train) + len(held_out) == len(rows)
    assert not keys(train) & keys(held_out)
    # Whatever else is there, a row keeps its side: a champion has not seen what judges its challenger.
    again, _ = dataset(rows[:200] * 2).split()
    assert not keys(again) & keys(held_out)


def test_about_a_fifth_is_held_out() -> None:
    _, held_out = dataset([(number / 7, "a") for number in range(5000)]).split()
    assert 0.17 < len(held_out) / 5000 < 0.23


def test_a_class_that_is_on_one_side_only_is_named() -> None:
    rare = dataset([(float(number), "a") for number in range(200)])
    rare.labels[0] = "rare"
    with pytest.raises(NotEnoughData, match=r"label: no (training|held-out) row for rare"):
        rare.split()


def test_the_evaluation_rows_survive_parquet_with_missing_values() -> None:
    before = dataset([(1.5, ""), (float("nan"), "red")])
    after = Dataset.from_parquet(before.to_parquet(), FEATURES, "label")
    np.testing.assert_array_equal(after.columns["x"], before.columns["x"])
    np.testing.assert_array_equal(after.columns["color"], before.columns["color"])
    np.testing.assert_array_equal(after.labels, before.labels)


def test_each_event_id_is_read_once(catalog: SqlCatalog, iris: Pipeline, rows: list[Any], post: Post) -> None:
    ids = [f"id-{number}" for number in range(150)]
    post(iris, rows, ids)
    post(iris, rows[:40], ids[:40])
    _, read = data.read(catalog, iris, "a")
    assert len(read) == 150


def test_rows_without_a_label_are_left_out_and_missing_features_are_kept(catalog: SqlCatalog, post: Post) -> None:
    fields = {
        "x": {"type": "double", "required": False},
        "n": {"type": "long"},
        "b": {"type": "boolean"},
        "s": {"type": "string", "required": False},
        "y": {"type": "long", "required": False},
    }
    pipeline = parse_pipeline({"fields": fields, "model": {"label": "y"}}, "mixed")
    one: dict[str, Any] = {"x": None, "n": 3, "b": True, "s": None, "y": 0}
    post(pipeline, [one] * 20 + [{**one, "x": 1.5, "s": "red", "y": 1}] * 20 + [{**one, "y": None}] * 5)
    _, read = data.read(catalog, pipeline, "a")
    assert len(read) == 40
    assert np.isnan(read.columns["x"][:20]).all()
    assert read.columns["s"].tolist() == [""] * 20 + ["red"] * 20
    assert read.columns["n"].tolist() == [3.0] * 40
    assert read.columns["b"].tolist() == [1.0] * 40


def test_a_run_keeps_the_snapshot_it_pinned(catalog: SqlCatalog, iris: Pipeline, rows: list[Any], post: Post) -> None:
    post(iris, rows)
    first, _ = data.read(catalog, iris, "manual__2026-11-23T08:00:00+00:00")
    post(iris, rows)
    again, read = data.read(catalog, iris, "manual__2026-11-23T08:00:00+00:00")
    assert (again, len(read)) == (first, 150)
    other, read = data.read(catalog, iris, "another")
    assert other != first
    assert len(read) == 300
    assert {"train-manual__2026-11-23T08-00-00-00-00", "train-another"} <= set(
        catalog.load_table(iris.table).metadata.refs
    )


def test_a_tag_that_loses_the_race_against_the_sink_is_set_again(
    catalog: SqlCatalog, iris: Pipeline, rows: list[Any], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(iris, rows)
    commit, lost = catalog.commit_table, []

    def race(*args: Any) -> Any:
        if len(lost) < 2:
            lost.append(args)
            raise CommitFailedException("the sink was faster")
        return commit(*args)

    monkeypatch.setattr(catalog, "commit_table", race)
    snapshot, read = data.read(catalog, iris, "raced")
    assert len(lost) == 2
    assert catalog.load_table(iris.table).metadata.refs["train-raced"].snapshot_id == snapshot
    assert len(read) == 150


def test_too_little_is_said_with_the_numbers(catalog: SqlCatalog, iris: Pipeline, rows: list[Any], post: Post) -> None:
    with pytest.raises(NotEnoughData, match=r"table events\.iris does not exist yet: post events first"):
        data.read(catalog, iris, "a")
    post(iris, rows[:20])
    with pytest.raises(NotEnoughData, match=r"events\.iris has 20 labelled rows at snapshot \d+, training needs 30"):
        data.read(catalog, iris, "b")
    post(iris, rows[20:40])
    with pytest.raises(NotEnoughData, match="species has one value only"):
        data.read(catalog, iris, "c")


def test_a_field_the_table_lacks_is_named(catalog: SqlCatalog, iris: Pipeline, rows: list[Any], post: Post) -> None:
    post(iris, rows)
    fields = {**iris.model_dump(include={"fields"})["fields"], "height": {"type": "double"}}
    taller = parse_pipeline({"fields": fields, "model": {"label": "species"}}, "iris")
    with pytest.raises(TrainingError, match="no column height: does the sink run"):
        data.read(catalog, taller, "a")
