"""The gate against MLflow's own file store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from levada.config import Settings
from levada.evidence import ALIAS, GATE_TAG, SIGNATURE_TAG, verify
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import tracking
from levada.registry.case import Files
from levada.registry.errors import TrainingError
from levada.registry.evaluate import evaluate
from levada.registry.promote import Approval, promote
from levada.registry.train import train

from .conftest import IRIS, champion, redeclared

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides


def test_a_first_model_above_the_floor_serves_with_its_evidence(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "a")
    record = promote(settings, iris, "a")
    assert (record.outcome, record.version, record.champion, record.champion_value) == ("promoted", "1", "1", None)
    assert champion(client) == "1"
    version = client.get_model_version("iris", "1")
    assert verify(b"the key of the gate", "iris", "1", version.tags) == record
    report = json.loads(tracking.download(client, version.run_id, "gate/report.json"))
    assert report["outcome"] == "promoted"
    assert report["run"] == "a"


def test_a_model_below_the_floor_never_serves(
    settings: Settings, client: MlflowClient, weak: Pipeline, rows: list[Any], post: Post
) -> None:
    strict = redeclared(weak, gate={"floor": 0.99})
    post(strict, rows)
    train(settings, strict, "a")
    record = promote(settings, strict, "a")
    assert (record.outcome, record.champion) == ("refused", None)
    assert "below the floor 0.99" in record.reason
    assert champion(client) is None


@pytest.mark.row(46)
def test_a_tie_keeps_the_champion_and_a_better_model_takes_over(
    settings: Settings, client: MlflowClient, weak: Pipeline, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, weak, "weak-1")
    assert promote(settings, weak, "weak-1").outcome == "promoted"
    train(settings, weak, "weak-2")
    tie = promote(settings, weak, "weak-2")
    assert (tie.outcome, tie.champion, tie.value) == ("kept", "1", tie.champion_value)
    assert champion(client) == "1"
    train(settings, iris, "better")
    better = promote(settings, iris, "better")
    assert (better.outcome, better.champion) == ("promoted", "3")
    assert better.champion_value is not None
    assert better.value > better.champion_value + 0.005
    assert champion(client) == "3"


def test_asked_again_the_record_stands_and_an_old_run_does_not_return(
    settings: Settings, client: MlflowClient, weak: Pipeline, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, weak, "old")
    first = promote(settings, weak, "old")
    train(settings, iris, "new")
    promote(settings, iris, "new")
    assert promote(settings, weak, "old") == first
    assert champion(client) == "2"


def test_an_alias_moved_by_hand_is_put_back(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    for run in ("a", "b"):
        train(settings, iris, run)
        promote(settings, iris, run)
    client.set_registered_model_alias("iris", ALIAS, "2")
    train(settings, iris, "c")  # nor does a training mind it
    promote(settings, iris, "b")
    assert champion(client) == "1"


@pytest.mark.parametrize("step", ["log_artifacts", "set_model_version_tag", "set_registered_model_alias"])
def test_a_gate_that_dies_is_finished_by_its_retry(
    step: str,
    settings: Settings,
    client: MlflowClient,
    iris: Pipeline,
    rows: list[Any],
    post: Post,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post(iris, rows)
    train(settings, iris, "a")

    def die(*_: object, **__: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, die)
        with pytest.raises(SystemExit):
            promote(settings, iris, "a")
    assert champion(client) is None
    assert promote(settings, iris, "a").outcome == "promoted"
    assert champion(client) == "1"


def test_a_model_of_other_features_is_compared_on_the_same_frozen_rows(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "all")
    promote(settings, iris, "all")
    sepals = redeclared(iris, features=("sepal_length", "sepal_width"), gate={"floor": 0.5, "leastRows": 20})
    train(settings, sepals, "sepals")
    record = promote(settings, sepals, "sepals")
    assert record.outcome == "kept"
    assert record.champion_value is not None
    assert record.value < record.champion_value
    assert champion(client) == "1"


def test_a_field_that_the_frozen_rows_lack_is_for_a_person_to_decide(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "a")
    promote(settings, iris, "a")
    taller = parse_pipeline(
        {
            "fields": {**IRIS["fields"], "height": {"type": "double", "required": False}},
            "model": IRIS["model"],
        },
        "iris",
    )
    post(taller, [{**row, "height": row["sepal_length"] * 3} for row in rows])
    train(settings, taller, "b")
    record = promote(settings, taller, "b")
    assert record.outcome == "needs approval"
    assert "champion 1 cannot be compared: the frozen evaluation set has no height" in record.reason
    approved = promote(settings, taller, "b", Approval("ada", "the new sensor was calibrated"))
    assert (approved.outcome, approved.champion, approved.champion_value) == ("promoted", "2", None)
    assert champion(client) == "2"


def test_a_forged_record_counts_for_nothing(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "a")
    promote(settings, iris, "a")
    text = client.get_model_version("iris", "1").tags[GATE_TAG]
    train(settings, iris, "b")
    forged = text.replace('"version":"1"', '"version":"2"').replace('"champion":"1"', '"champion":"2"')
    client.set_model_version_tag("iris", "2", GATE_TAG, forged)
    client.set_model_version_tag("iris", "2", SIGNATURE_TAG, "00" * 32)
    assert promote(settings, iris, "b").outcome == "kept"
    assert champion(client) == "1"


@pytest.mark.parametrize("file", ["frozen/rows.parquet", "gate/training.parquet", "gate/report.json"])
def test_evidence_beside_the_champion_that_was_changed_judges_nobody(
    file: str, settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    for run in ("a", "b"):
        train(settings, iris, run)
    promote(settings, iris, "a")
    before = tracking.download(client, client.get_model_version("iris", "1").run_id, file)
    tracking.upload(client, client.get_model_version("iris", "1").run_id, {file: before + b" "})
    with pytest.raises(TrainingError, match=f"{file} of iris version 1, the champion, is not the file that was signed"):
        promote(settings, iris, "b")
    assert champion(client) == "1"


@pytest.mark.parametrize(
    "file", ["frozen/rows.parquet", "gate/training.parquet", "gate/report.json", "onnx/model.onnx"]
)
def test_what_is_lost_beside_the_champion_is_named_with_what_to_do(
    file: str, settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    for run in ("a", "b"):
        train(settings, iris, run)
    promote(settings, iris, "a")
    folder = client.get_run(client.get_model_version("iris", "1").run_id).info.artifact_uri
    Path(folder.removeprefix("file://"), file).unlink()
    for judge in (promote, evaluate):
        with pytest.raises(TrainingError) as told:
            judge(settings, iris, "b")
        assert str(told.value).startswith(f"{file} of iris version 1, the champion, cannot be read: ")
        assert str(told.value).endswith(
            "if MLflow answers and the file is lost, put it back from a backup of MLflow, or let an earlier version "
            "serve with levada rollback"
        )
    assert champion(client) == "1"
    assert GATE_TAG not in client.get_model_version("iris", "2").tags


def test_a_champions_record_that_was_damaged_is_told_and_the_one_in_force_is_put_back(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    for run in ("a", "b"):
        train(settings, iris, run)
    record = promote(settings, iris, "a")
    client.set_model_version_tag("iris", "1", GATE_TAG, "{}")
    with pytest.raises(TrainingError, match=r"gate's record of iris version 1, the champion, does not hold: .*put it"):
        Files(client, b"the key of the gate", iris, client.get_model_version("iris", "1"))
    assert promote(settings, iris, "b").outcome == "kept"
    assert client.get_model_version("iris", "1").tags[GATE_TAG] == record.to_json()


def test_a_run_without_a_version_says_what_to_run(settings: Settings, iris: Pipeline) -> None:
    with pytest.raises(TrainingError, match="run levada train --run a first"):
        promote(settings, iris, "a")
