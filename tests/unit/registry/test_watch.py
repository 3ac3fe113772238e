"""A champion is watched by what it said: drift, quality once labels come, a challenger beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from pyiceberg.catalog.sql import SqlCatalog

from levada import lake
from levada.config import Settings
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import tracking
from levada.registry.errors import NotEnoughData
from levada.registry.promote import Approval, promote
from levada.registry.train import train
from levada.registry.watch import watch
from levada.scoring import OnnxModel
from levada.watched import WATCH_TAG, Watched

from .conftest import MEASURES, redeclared

Post = Callable[..., None]
Rows = list[dict[str, Any]]
Serving = Callable[..., list[str]]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides
CHANCE = np.random.default_rng(55)


@pytest.fixture
def served(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, post: Post
) -> Callable[[Rows, str], list[str]]:
    """A champion, version 1; what it says to rows is logged. Gives the ids."""
    post(iris, rows)
    train(settings, iris, "a")
    assert promote(settings, iris, "a").outcome == "promoted"
    model = OnnxModel(tracking.download(client, client.get_model_version("iris", "1").run_id, "onnx/model.onnx"))
    stream = iris.predictions
    assert stream is not None

    def ask(asked: Rows, prefix: str, version: str = "1", suffix: str = "", lies: int = 0) -> list[str]:
        columns = {name: np.array([row[name] for row in asked]) for name in MEASURES}
        said = model.predict(columns)
        said[:lies] = ["setosa" if label != "setosa" else "virginica" for label in said[:lies]]
        ids = [f"{prefix}-{number}" for number in range(len(asked))]
        logged = [
            {**{name: row[name] for name in MEASURES}, "species": label, "model_version": version, "model_score": 0.9}
            for row, label in zip(asked, said, strict=True)
        ]
        post(stream, logged, [event_id + suffix for event_id in ids])
        return ids

    return ask


def tagged(client: MlflowClient, version: str = "1") -> Watched:
    return Watched.from_json(client.get_model_version("iris", version).tags[WATCH_TAG])


def some(rows: Rows, count: int) -> Rows:
    return [rows[place] for place in CHANCE.integers(0, len(rows), count)]


def turned(rows: Rows) -> Rows:
    """The same flowers under other names."""
    other = {"setosa": "versicolor", "versicolor": "virginica", "virginica": "setosa"}
    return [{**row, "species": other[row["species"]]} for row in rows]


@pytest.mark.row(55, part="drift and quality of a model")
def test_quality_is_that_of_predictions_whose_label_came(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, post: Post, served: Serving
) -> None:
    asked = some(rows, 200)
    ids = served(asked, "p")
    post(iris, asked[:120], ids[:120])
    post(iris, turned(asked[:120]), ids[:120])  # a second label is not counted
    found, waits = watch(settings, iris)
    assert (found.rows, found.labelled, found.metric, found.alarms, waits) == (200, 120, "accuracy", (), "")
    assert found.value is not None
    assert found.value > 0.9
    assert found.frozen_value == client.get_run(client.get_model_version("iris", "1").run_id).data.metrics["accuracy"]
    assert found.drift.keys() == {*MEASURES, "species"}
    assert max(found.drift.values()) < found.bound == 0.2
    assert tagged(client) == found
    run = client.get_run(client.get_model_version("iris", "1").run_id)
    assert run.data.metrics["watch/accuracy"] == found.value
    assert run.data.metrics["watch/labelled"] == 120
    assert run.data.metrics["watch/psi/petal_width"] == found.drift["petal_width"]
    watch(settings, iris)
    assert len(client.get_metric_history(run.info.run_id, "watch/rows")) == 2


def test_other_flowers_and_other_labels_raise_the_alarm(
    settings: Settings, iris: Pipeline, rows: Rows, post: Post, served: Serving
) -> None:
    served([{**row, "petal_length": row["petal_length"] + 3} for row in some(rows, 150)], "moved")
    found, _ = watch(settings, iris)
    assert any(alarm.startswith("petal_length: population stability index") for alarm in found.alarms)
    assert not any(alarm.startswith("sepal_width") for alarm in found.alarms)
    assert found.value is None
    assert found.note == "0 of the predictions have a label, 20 are needed for the quality"


def test_labels_that_contradict_the_champion_raise_the_alarm(
    settings: Settings, iris: Pipeline, rows: Rows, post: Post, served: Serving
) -> None:
    asked = some(rows, 150)
    post(iris, turned(asked), served(asked, "p"))
    found, _ = watch(settings, iris)
    assert found.value is not None
    assert found.value < 0.1
    (alarm,) = found.alarms
    assert alarm.startswith("champion: wrong on 9")


def test_what_was_logged_must_be_what_the_model_says(
    settings: Settings, iris: Pipeline, rows: Rows, served: Serving
) -> None:
    served(some(rows, 150), "p", lies=10)
    found, _ = watch(settings, iris)
    assert "skew: 10 of 150 logged predictions are not what the model says to what was logged" in found.alarms


def test_few_predictions_and_none_at_all(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, post: Post
) -> None:
    with pytest.raises(NotEnoughData, match="iris has no champion yet"):
        watch(settings, iris)
    post(iris, rows)
    train(settings, iris, "a")
    promote(settings, iris, "a")
    with pytest.raises(NotEnoughData, match="no prediction of iris is in the lake yet: ask its predictor"):
        watch(settings, iris)


def test_the_newest_predictions_of_the_champion_alone_are_looked_at(
    settings: Settings, iris: Pipeline, rows: Rows, served: Serving
) -> None:
    moved = [{**row, "petal_length": row["petal_length"] + 3} for row in some(rows, 150)]
    served(moved, "older")
    served(moved, "other", version="7")
    served(some(rows, 5), "few", version="1")
    few = redeclared(iris, watch={"window": 60})
    served(some(rows, 60), "newest")
    served(moved[:40], "another", version="7")
    served(moved[:40], "before", suffix="/shadow")  # from when it was a challenger itself
    found, _ = watch(settings, few)
    assert (found.rows, found.alarms) == (60, ())


def test_a_few_are_said_to_be_few(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, served: Serving
) -> None:
    served(rows[:12], "p")
    found, _ = watch(settings, iris)
    assert (found.rows, found.note, found.alarms) == (
        12,
        "12 predictions are logged, 20 are needed to tell anything",
        (),
    )
    assert tagged(client) == found


def test_a_challenger_is_compared_on_what_both_were_asked(
    settings: Settings, iris: Pipeline, rows: Rows, post: Post, served: Serving
) -> None:
    asked = some(rows, 200)
    ids = served(asked, "p")
    served(asked[:100], "p", version="2", suffix="/shadow", lies=40)
    post(iris, asked[:50], ids[:50])
    found, _ = watch(settings, iris)
    assert found.rows == 200
    assert found.shadow is not None
    assert (found.shadow.version, found.shadow.rows, found.shadow.agreement) == ("2", 100, 0.6)
    assert found.shadow.labelled == 50
    assert found.shadow.value is not None
    assert found.shadow.champion_value is not None
    assert found.shadow.value < 0.3 < 0.9 < found.shadow.champion_value
    assert Watched.from_json(found.to_json()) == found


RENTS = {
    "fields": {"size": {"type": "double"}, "rent": {"type": "long"}},
    "model": {"label": "rent", "gate": {"metric": "r2", "floor": 0.5, "leastRows": 20}},
}


def say(settings: Settings, post: Post, pipeline: Pipeline, asked: Rows, prefix: str, version: str) -> list[str]:
    """Log what version 1 says to rows under the name of a version; the ids."""
    client, label = tracking.connect(settings), pipeline.model.label  # type: ignore[union-attr]
    model = OnnxModel(tracking.download(client, client.get_model_version(pipeline.name, "1").run_id, "onnx/model.onnx"))
    said = model.predict({name: np.array([row[name] for row in asked], dtype=float) for name in pipeline.features})
    ids = [f"{prefix}-{number}" for number in range(len(asked))]
    kept = [
        {**{name: row[name] for name in pipeline.features}, label: one, "model_version": version, "model_score": None}
        for row, one in zip(asked, said, strict=True)
    ]
    assert pipeline.predictions is not None
    post(pipeline.predictions, kept, [each + ("/shadow" if version != "1" else "") for each in ids])
    return ids


def rents(count: int) -> Rows:
    return [{"size": float(size), "rent": int(9 * size)} for size in CHANCE.uniform(20, 120, count)]


def test_a_regression_is_watched_by_its_own_metric(settings: Settings, post: Post) -> None:
    pipeline = parse_pipeline(RENTS, "rents")
    post(pipeline, rents(300))
    train(settings, pipeline, "a")
    assert promote(settings, pipeline, "a").outcome == "promoted"
    asked = rents(150)
    post(pipeline, asked, say(settings, post, pipeline, asked, "p", "1"))
    found, _ = watch(settings, pipeline)
    assert (found.metric, found.labelled, found.alarms, found.note, found.calibration) == ("r2", 150, (), "", None)
    assert found.value is not None
    assert found.value > 0.99


def test_r2_says_nothing_of_labels_that_are_all_the_same(settings: Settings, client: MlflowClient, post: Post) -> None:
    pipeline = parse_pipeline(RENTS, "rents")
    post(pipeline, rents(300))
    train(settings, pipeline, "a")
    promote(settings, pipeline, "a")
    asked = rents(60)
    ids = say(settings, post, pipeline, asked, "p", "1")
    say(settings, post, pipeline, asked, "p", "2")
    post(pipeline, [{**row, "rent": 500} for row in asked], ids)
    found, _ = watch(settings, pipeline)
    assert (found.labelled, found.value) == (60, None)
    assert found.note == "r2 says nothing of 60 labels that are all the same"
    assert found.shadow is not None
    assert (found.shadow.agreement, found.shadow.labelled, found.shadow.value) == (1.0, 60, None)
    version = client.get_model_version("rents", "1")
    assert Watched.from_json(version.tags[WATCH_TAG]) == found
    assert "watch/r2" not in client.get_run(version.run_id).data.metrics


def test_a_champion_that_predicts_something_else_than_is_judged_is_told(settings: Settings, post: Post) -> None:
    chance = {"metric": "accuracy", "floor": 0.5, "leastRows": 20}
    classes = parse_pipeline({**RENTS, "model": {"label": "rent", "gate": chance}}, "rents")
    rows = [{**row, "rent": int(row["size"] > 70)} for row in rents(300)]
    post(classes, rows)
    train(settings, classes, "a")
    assert promote(settings, classes, "a").outcome == "promoted"
    post(classes, rows[:60], say(settings, post, classes, rows[:60], "p", "1"))
    found, _ = watch(settings, parse_pipeline(RENTS, "rents"))
    assert found.note == "the champion predicts a class, gate.metric r2 judges numbers: train again"
    assert (found.rows, found.value, found.alarms) == (60, None, ())


def test_one_that_waits_for_a_person_is_told(
    settings: Settings, iris: Pipeline, weak: Pipeline, rows: Rows, post: Post, served: Serving
) -> None:
    served(rows, "p")
    post(iris, [{**row, "petal_length": row["petal_length"] + 3} for row in some(rows, 150)])
    train(settings, iris, "b")
    assert promote(settings, iris, "b").outcome == "needs approval"
    assert watch(settings, iris)[1] == "2"


def test_the_newest_rows_are_read_by_whole_files(catalog: SqlCatalog, iris: Pipeline, rows: Rows, post: Post) -> None:
    for part in range(5):
        post(iris, rows[:10], [f"{part}-{number}" for number in range(10)])
    table = catalog.load_table(iris.table)
    found = lake.newest(table, 15, ["species", "_event_id", "nothing"])
    assert found.column_names == ["species", "_event_id"]
    assert {text[0] for text in found["_event_id"].to_pylist()} == {"3", "4"}
    assert len(lake.newest(table, 1000, ["species"])) == 50


def test_what_was_said_in_shadow_is_in_the_report_of_its_approval(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, post: Post, served: Serving
) -> None:
    asked = some(rows, 60)
    ids = served(asked, "p")
    post(iris, [{**row, "petal_length": row["petal_length"] + 3} for row in some(rows, 150)])
    train(settings, iris, "b")
    assert promote(settings, iris, "b").outcome == "needs approval"
    run = client.get_model_version("iris", "2").run_id
    assert json.loads(tracking.download(client, run, "gate/report.json"))["shadow"] is None
    served(asked, "p", version="2", suffix="/shadow", lies=15)
    post(iris, asked[:30], ids[:30])
    assert promote(settings, iris, "b", Approval("ada", "a new scale")).outcome == "promoted"
    report = json.loads(tracking.download(client, run, "gate/report.json"))
    assert (report["shadow"]["rows"], report["shadow"]["agreement"], report["shadow"]["labelled"]) == (60, 0.75, 30)
    assert report["latency"].keys() == {"1", "2"}
    assert all(0 < taken < 0.1 for taken in report["latency"].values())
    page = tracking.download(client, run, "gate/report.html").decode()
    assert "to 75.0% of 60 rows" in page
