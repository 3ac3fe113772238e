"""Reading the lake and splitting what was read."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from structlog.testing import capture_logs

from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import data
from levada.registry.dataset import Dataset, Sides, newer_than, sides, trainable
from levada.registry.errors import NotEnoughData, TrainingError
from levada.scoring import Feature

from .conftest import snapshot

Post = Callable[..., None]
FIELDS = {"x": {"type": "double"}, "color": {"type": "string"}, "who": {"type": "string"}, "label": {"type": "string"}}


def declared(**model: Any) -> Pipeline:
    return parse_pipeline({"fields": FIELDS, "model": {"label": "label", "features": ["x", "color"], **model}}, "p")


def made_up(rows: list[tuple[float, str]]) -> pa.Table:
    return snapshot(
        [{"x": x, "color": color, "who": f"w{n % 40}", "label": "one"} for n, (x, color) in enumerate(rows)]
    )


def keys(split: Sides, mask: Any) -> set[tuple[Any, ...]]:
    part = split.every.take(mask)
    return set(zip(part.columns["x"].tolist(), part.columns["color"].tolist(), strict=True))


@pytest.mark.row(45, part="duplicates")
@pytest.mark.parametrize("by", [{}, {"by": "group", "field": "who"}, {"by": "time"}])
@given(seed=st.integers())
def test_equal_rows_never_cross_the_split(by: dict[str, str], seed: int) -> None:
    chance = random.Random(seed)
    rows = [(chance.choice([-0.0, 0.0, chance.randrange(60) / 10]), chance.choice("abc")) for _ in range(400)]
    split = sides(made_up(rows), declared(split=by))
    assert not keys(split, split.training) & keys(split, split.held_out)
    assert not (split.training & split.held_out).any()


def test_the_order_of_the_fields_changes_no_side() -> None:
    rows = made_up([(n / 7, "red") for n in range(300)])
    there = sides(rows, declared(features=["x", "color"]))
    assert (there.held_out == sides(rows, declared(features=["color", "x"])).held_out).all()
    assert there.held_out.any()


def test_a_row_keeps_its_side_whatever_else_is_there() -> None:
    chance = random.Random(1)
    rows = [(chance.randrange(60) / 10, chance.choice("abc")) for _ in range(400)]
    held_out = keys(first := sides(made_up(rows), declared()), first.held_out)
    again = sides(made_up(rows[:200] * 2), declared())
    assert not keys(again, again.training) & held_out


@pytest.mark.parametrize("by", [{}, {"by": "group", "field": "who"}, {"by": "time"}])
def test_rows_of_the_frozen_set_are_never_trained_on(by: dict[str, str]) -> None:
    rows = [(number / 7, "a") for number in range(500)]
    pipeline = declared(split=by)
    frozen = sides(made_up(rows), declared()).every.take(np.arange(100))
    split = sides(made_up(rows), pipeline, frozen)
    assert not keys(split, split.training) & set(rows[:100])
    assert len(keys(split, split.training)) > 200


def test_groups_stay_together_and_time_holds_out_the_newest() -> None:
    rows = [(number / 7, "a") for number in range(400)]
    table = made_up(rows)
    split = sides(table, declared(split={"by": "group", "field": "who"}))
    who = np.array(table["who"].to_pylist())
    assert not set(who[split.training]) & set(who[split.held_out])
    assert split.held_out.any()
    split = sides(table, declared(split={"by": "time"}))
    assert split.held_out.tolist() == [False] * 320 + [True] * 80


def test_about_a_fifth_is_held_out() -> None:
    split = sides(made_up([(number / 7, "a") for number in range(5000)]), declared())
    assert 0.17 < split.held_out.mean() < 0.23
    assert (split.training ^ split.held_out).all()


def labelled(labels: list[str]) -> pa.Table:
    return snapshot(
        [{"x": float(number), "color": "a", "who": "b", "label": label} for number, label in enumerate(labels)]
    )


def test_an_event_with_a_new_label_is_left_out_and_named_and_training_goes_on() -> None:
    split = sides(labelled(["new"] + ["a", "b"] * 100), declared())
    with capture_logs() as logged:
        training, held_out = trainable(split, declared())
    assert set(training.labels) == set(held_out.labels) == {"a", "b"}
    assert split.left_out == {"new": 1}
    assert [(line["log_level"], line["rows"]) for line in logged] == [("warning", "new (1)")]
    assert len(split.every) == 201  # the checks of new data still see it


def test_left_out_classes_are_named_briefly_however_many_there_are() -> None:
    split = sides(labelled([f"{n:04}" + "x" * 1000 for n in range(1000)] + ["a", "b"] * 100), declared())
    assert len(split.left_out) == 1000
    assert split.left_out_text.endswith(" and 990 more")
    assert len(split.left_out_text) < 1500


def test_fewer_than_two_classes_on_both_sides_are_too_few() -> None:
    with pytest.raises(NotEnoughData, match=r"label: a model needs two classes .* left out are rare \(1\)"):
        trainable(sides(labelled(["rare"] + ["a"] * 199), declared()), declared())


def test_rows_survive_parquet_with_missing_values_and_keep_their_digest() -> None:
    features = (Feature("x", "double", True), Feature("color", "string", True))
    columns = {"x": np.array([1.5, np.nan]), "color": np.array(["", "red"], dtype=object)}
    before = Dataset(features, "label", columns, np.array(["a", "b"], dtype=object))
    after = Dataset.from_parquet(before.to_parquet(), features, "label")
    np.testing.assert_array_equal(after.columns["x"], before.columns["x"])
    np.testing.assert_array_equal(after.columns["color"], before.columns["color"])
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.digests(label=True), before.digests(label=True))


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
    _, table = data.read(catalog, pipeline, "a")
    assert len(table) == 40
    read = sides(table, pipeline).every
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


def test_what_came_since_is_told_by_event_ids(catalog: SqlCatalog, iris: Pipeline, rows: list[Any], post: Post) -> None:
    post(iris, rows[:100])
    first, _ = data.read(catalog, iris, "a")
    post(iris, rows[100:])
    _, table = data.read(catalog, iris, "b")
    new = newer_than(sides(table, iris), data.event_ids(catalog, iris, first))
    assert new.tolist() == [False] * 100 + [True] * 50
    assert data.event_ids(catalog, iris, 17) is None
    with pytest.raises(TrainingError, match="no snapshot 17 any more"):
        data.read_at(catalog, iris, 17)
