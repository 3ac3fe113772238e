"""What the gate is shown: which champion can be compared, on which rows, and what the new data is compared with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from levada.config import Settings
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import tracking
from levada.registry.case import BASELINE_FILE, Standing, assemble
from levada.registry.compare import Answers
from levada.registry.dataset import Dataset, sides
from levada.registry.errors import TrainingError
from levada.registry.promote import Approval, promote
from levada.registry.train import train

from .conftest import snapshot

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides
CLASSES = {"metric": "accuracy", "floor": 0.7, "leastRows": 20, "calibration": 1.0}
NUMBERS = {"metric": "rmse", "floor": 1.0, "leastRows": 20}


def late(gate: dict[str, Any]) -> Pipeline:
    """Whether a train is late, as a long: a class or a number, as the gate says."""
    fields = {"wind": {"type": "double"}, "late": {"type": "long"}}
    return parse_pipeline({"fields": fields, "model": {"label": "late", "gate": gate}}, "trains")


@pytest.mark.parametrize(("first", "then"), [(CLASSES, NUMBERS), (NUMBERS, CLASSES)])
def test_a_champion_of_the_other_kind_is_for_a_person(
    first: dict[str, Any], then: dict[str, Any], settings: Settings, post: Post
) -> None:
    wind = np.random.default_rng(5).normal(size=300)
    post(late(first), [{"wind": float(one), "late": int(one > 0)} for one in wind])
    train(settings, late(first), "a")
    assert promote(settings, late(first), "a").outcome == "promoted"
    train(settings, late(then), "b")
    record = promote(settings, late(then), "b")
    assert (record.outcome, record.champion_value) == ("needs approval", None)
    assert "champion 1 cannot be compared: it predicts a" in record.reason
    assert promote(settings, late(then), "b", Approval("ada", "hours instead of yes and no")).outcome == "promoted"


def test_a_version_of_another_kind_than_the_declaration_is_told_to_train_again(settings: Settings, post: Post) -> None:
    wind = np.random.default_rng(5).normal(size=300)
    post(late(CLASSES), [{"wind": float(one), "late": int(one > 0)} for one in wind])
    train(settings, late(CLASSES), "a")
    with pytest.raises(TrainingError, match=r"version 1 of trains predicts a class, gate\.metric rmse judges numbers"):
        promote(settings, late(NUMBERS), "a")


def test_r2_of_one_number_is_refused_with_what_to_do() -> None:
    pipeline = late({"metric": "r2", "floor": 0.5})
    split = sides(snapshot([{"wind": float(n), "late": 0} for n in range(100)]), pipeline)
    with pytest.raises(TrainingError, match=r"r2 says nothing of trains: all 1[0-9] rows of the evaluation set have"):
        assemble(pipeline, split, None, lambda rows: Answers(rows.labels, np.zeros((len(rows), 1)), ()), None)


def forecast(fields: dict[str, Any]) -> Pipeline:
    return parse_pipeline({"fields": {**fields, "rain": {"type": "string"}}, "model": {"label": "rain"}}, "days")


@pytest.mark.parametrize(("by", "months"), [("content", 12), ("time", 150)])
def test_clean_rows_of_few_values_raise_no_alarm(by: str, months: int) -> None:
    """Training has none of the contents that are held out, which for few values is another distribution."""
    declared = forecast({"month": {"type": "long"}}).model_dump(exclude={"name"})
    pipeline = parse_pipeline({**declared, "model": {"label": "rain", "split": {"by": by}}}, "days")
    chance = np.random.default_rng(6)
    shares = 1 / np.arange(1, months + 1)
    days = [
        {"month": int(month), "rain": str(chance.choice(["n", "y"]))}
        for month in chance.choice(months, 1000, p=shares / shares.sum())
    ]
    first = assemble(pipeline, sides(snapshot(days[:600]), pipeline), None, _guess, None)
    split = sides(snapshot(days), pipeline, first.frozen.rows)
    new = np.arange(1000) >= 600
    standing = Standing("1", _guess, "", first.every, new)
    found = assemble(pipeline, split, first.frozen, _guess, standing).case.checks
    assert {one.what for one in found} == {"month", "rain", "duplicates", "champion"}
    assert [one.text for one in found if one.alarm] == []


def _guess(rows: Dataset) -> Answers:
    return Answers(rows.labels, np.full((len(rows), 2), 0.5), ("n", "y"))


def test_a_field_that_came_or_went_is_in_the_report(settings: Settings, post: Post) -> None:
    chance = np.random.default_rng(7)
    wind = {"wind": {"type": "double"}}
    before = forecast({**wind, "gusts": {"type": "string", "required": False}})
    after = forecast({**wind, "hail": {"type": "double", "required": False}})

    def days() -> list[dict[str, Any]]:
        return [{"wind": float(one), "rain": "y" if one > 0 else "n"} for one in chance.normal(size=200)]

    post(before, days())
    train(settings, before, "a")
    assert promote(settings, before, "a").outcome == "promoted"
    post(after, days())
    train(settings, after, "b")
    promote(settings, after, "b")
    client = tracking.connect(settings)
    first, run_id = (client.get_model_version("days", version).run_id for version in "12")
    kept = pq.read_table(io.BytesIO(tracking.download(client, first, BASELINE_FILE)))
    assert len(kept) == 200  # all rows, whatever side they were on
    report = json.loads(tracking.download(client, run_id, "gate/report.json"))
    assert report["checks"][0]["text"] == "schema: gusts is gone, hail is new"
    assert b"<td>schema</td>" in tracking.download(client, run_id, "gate/report.html")
