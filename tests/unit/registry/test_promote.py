"""The gate against MLflow's own file store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient

from levada.config import Settings
from levada.evidence import ALIAS, GATE_TAG, SIGNATURE_TAG, verify
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import tracking
from levada.registry.errors import TrainingError
from levada.registry.promote import promote
from levada.registry.train import train

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides


@pytest.fixture
def client(settings: Settings) -> MlflowClient:
    return tracking.connect(settings)


@pytest.fixture
def weak(iris: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Iris with a trainer that learns badly and a low floor."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def build(pipeline: Pipeline) -> Any:
        columns = ColumnTransformer([("all", "passthrough", list(pipeline.features))])
        return make_pipeline(columns, LogisticRegression(C=1e-4))

    module = ModuleType("weak_trainer")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "weak_trainer", module)
    monkeypatch.setattr("inspect.getsource", lambda _: "weak")
    return redeclared(iris, trainer="weak_trainer:build", gate={"floor": 0.2})


def redeclared(pipeline: Pipeline, **model: Any) -> Pipeline:
    before = pipeline.model_dump(exclude={"name"})
    return parse_pipeline({**before, "model": {**before["model"], **model}}, pipeline.name)


def champion(client: MlflowClient) -> str | None:
    aliases = client.get_registered_model("iris").aliases
    return str(aliases[ALIAS]) if ALIAS in aliases else None


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
    promote(settings, iris, "b")
    assert champion(client) == "1"


@pytest.mark.parametrize("step", ["log_text", "set_model_version_tag", "set_registered_model_alias"])
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


def test_a_champion_of_other_features_yields_to_the_floor_alone(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "all")
    promote(settings, iris, "all")
    petals = redeclared(iris, features=("petal_length", "petal_width"), gate={"floor": 0.5})
    train(settings, petals, "petals")
    record = promote(settings, petals, "petals")
    assert (record.outcome, record.champion_value) == ("promoted", None)
    assert "champion 1 cannot be compared: it takes sepal_length, sepal_width" in record.reason
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


def test_an_evaluation_set_that_was_changed_judges_nobody(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "a")
    client.set_model_version_tag("iris", "1", "levada.eval.sha256", "00" * 32)
    with pytest.raises(TrainingError, match=r"eval/rows\.parquet of iris version 1 is not the one registered"):
        promote(settings, iris, "a")


def test_a_run_without_a_version_says_what_to_run(settings: Settings, iris: Pipeline) -> None:
    with pytest.raises(TrainingError, match="run levada train --run a first"):
        promote(settings, iris, "a")
