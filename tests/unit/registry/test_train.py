"""Training against a real lake and MLflow's own file store."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from structlog.testing import capture_logs

from levada.config import Settings
from levada.evidence import EXAMPLE_FILE, EXAMPLE_TAG, MODEL_FILE, RUN_TAG, SNAPSHOT_TAG
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import tracking
from levada.registry.errors import NotEnoughData, TrainingError
from levada.registry.promote import promote
from levada.registry.train import train
from levada.registry.trainers import linear
from levada.scoring import OnnxModel, to_columns

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides


@pytest.mark.row(43)
def test_what_is_registered_predicts_raw_rows_like_the_onnx_that_serves(
    settings: Settings, iris: Pipeline, rows: list[dict[str, Any]], post: Post
) -> None:
    import mlflow

    post(iris, rows)
    version = train(settings, iris, "manual__1")
    client = tracking.connect(settings)
    registered = client.get_model_version("iris", version)

    model = OnnxModel(tracking.download(client, registered.run_id, MODEL_FILE))
    logged = mlflow.sklearn.load_model(f"models:/iris/{version}")
    frame = pd.DataFrame(rows).drop(columns="species")
    columns = to_columns(rows, model.meta.features)
    assert model.predict(columns) == logged.predict(frame).tolist()
    assert np.abs(model.scores(columns) - logged.predict_proba(frame)).max() < 1e-5
    info = mlflow.models.get_model_info(f"models:/iris/{version}")
    assert info.signature.inputs.input_names() == [*frame.columns]
    assert info.saved_input_example_info is not None
    assert json.loads(tracking.download(client, registered.run_id, "onnx/meta.json"))["labels"] == [
        "setosa", "versicolor", "virginica",
    ]  # fmt: skip

    run = client.get_run(registered.run_id)
    assert run.data.metrics["accuracy"] >= 0.93
    assert run.data.params["rows"] == "150"
    assert run.data.metrics["onnx_difference"] <= 1e-5
    assert 25 <= int(run.data.params["rows_held_out"]) <= 40
    assert registered.tags[RUN_TAG] == "manual__1"
    assert registered.tags[SNAPSHOT_TAG].isdigit()
    assert registered.tags["levada.trainer"] == "levada.registry.trainers:linear"
    example = json.loads(tracking.download(client, registered.run_id, EXAMPLE_FILE))
    assert len(example["instances"]) == 5
    replayed = model.scores(to_columns(example["instances"], model.meta.features))
    np.testing.assert_array_equal(replayed, np.array(example["scores"], dtype=replayed.dtype))
    assert "champion" not in client.get_registered_model("iris").aliases


@pytest.mark.row(50, part="what is kept")
def test_every_file_of_a_version_has_its_digest_and_none_is_a_pickle(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("LEVADA_IMAGE", "levada/trainer:0.1.0@sha256:ab")
    post(iris, rows)
    version = train(settings, iris, "a")
    client = tracking.connect(settings)
    registered = client.get_model_version("iris", version)
    listed = tracking.download(client, registered.run_id, "sha256.json")
    assert hashlib.sha256(listed).hexdigest() == registered.tags["levada.files.sha256"]
    digests = json.loads(listed)
    assert digests[EXAMPLE_FILE] == registered.tags[EXAMPLE_TAG]
    folder = Path(client.download_artifacts(registered.run_id, ""))
    model = Path(mlflow.artifacts.download_artifacts(f"models:/iris/{version}"))
    stored = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    stored |= {f"model/{path.relative_to(model)}": path for path in model.rglob("*") if path.is_file()}
    del stored["sha256.json"]
    stored.pop("model/registered_model_meta", None)  # MLflow writes it when it hands the model out
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in stored.items()} == digests
    assert not [name for name in digests if name.endswith((".pkl", ".pickle", ".joblib"))]
    assert "model/model.skops" in digests
    environment = stored["environment.txt"].read_text()
    assert "scikit-learn==" in environment
    assert "python==3." in environment
    assert registered.tags["levada.image"] == "levada/trainer:0.1.0@sha256:ab"
    assert registered.tags["levada.image.digest"] == "sha256:ab"
    assert registered.tags["levada.seed"] == client.get_run(registered.run_id).data.params["seed"]


def test_a_version_from_an_image_with_a_tag_alone_does_not_pretend_to_know_which(
    settings: Settings,
    client: MlflowClient,
    iris: Pipeline,
    rows: list[Any],
    post: Post,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEVADA_IMAGE", "registry.example.com:5000/mine:2")
    post(iris, rows)
    with capture_logs() as logged:
        tags = client.get_model_version("iris", train(settings, iris, "a")).tags
    assert (tags["levada.image"], tags["levada.image.digest"]) == ("registry.example.com:5000/mine:2", "unknown")
    (warning,) = [one for one in logged if one["log_level"] == "warning"]
    assert warning["event"].startswith("the image is not pinned by a digest")
    assert warning["image"] == tags["levada.image"]


def test_a_label_that_came_once_stops_no_training_and_is_on_the_run(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, [*rows, {**rows[0], "species": "pimpernel"}])
    version = client.get_model_version("iris", train(settings, iris, "a"))
    params = client.get_run(version.run_id).data.params
    assert (params["left_out"], params["rows"]) == ("pimpernel (1)", "150")
    assert promote(settings, iris, "a").outcome == "promoted"


def test_the_same_run_gives_the_same_version(settings: Settings, iris: Pipeline, rows: list[Any], post: Post) -> None:
    post(iris, rows)
    assert train(settings, iris, "a") == train(settings, iris, "a") == "1"
    assert train(settings, iris, "b") == "2"


def test_too_little_data_is_told_before_anything_is_written(settings: Settings, iris: Pipeline) -> None:
    with pytest.raises(NotEnoughData):
        train(settings, iris, "a")
    assert tracking.connect(settings).search_registered_models() == []


@pytest.mark.parametrize("run", ["", "a' or '1'='1", "a/b", "x" * 251])
def test_a_run_id_that_airflow_would_not_give_is_refused(run: str, settings: Settings, iris: Pipeline) -> None:
    with pytest.raises(TrainingError, match="is no run id"):
        train(settings, iris, run)


@pytest.mark.parametrize("trainer", ["levada.no_such_module:linear", "levada.registry.trainers:no_such_function"])
def test_a_trainer_that_is_not_in_the_image_is_named(trainer: str, settings: Settings, iris: Pipeline) -> None:
    lost = parse_pipeline({**iris.model_dump(exclude={"name"}), "model": {"label": "species", "trainer": trainer}}, "x")
    with pytest.raises(TrainingError, match=f"pipeline x: model.trainer {trainer} cannot be loaded"):
        train(settings, lost, "a")


def test_a_model_whose_onnx_differs_is_not_registered(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changed:
        """Forgets after the export what it was exported as."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def fit(self) -> None:
            """What scikit-learn looks for in an estimator."""

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def predict_proba(self, frame: Any) -> Any:
            return self._inner.predict_proba(frame) * 0.99

    own = ModuleType("own_trainer")
    own.build = lambda *given: Changed(linear(*given))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_trainer", own)
    monkeypatch.setattr("inspect.getsource", lambda _: "own")
    monkeypatch.setattr("levada.registry.export.to_onnx", lambda estimator, **rest: _convert(estimator._inner, **rest))
    post(iris, rows)
    model = {"label": "species", "trainer": "own_trainer:build"}
    changed = parse_pipeline({**iris.model_dump(exclude={"name"}), "model": model}, "iris")
    with pytest.raises(TrainingError, match=r"scores by up to 0\.01"):
        train(settings, changed, "a")
    assert tracking.versions(tracking.connect(settings), "iris") == []


def _convert(estimator: Any, **rest: Any) -> Any:
    from skl2onnx import to_onnx

    return to_onnx(estimator, **{**rest, "options": {id(estimator): {"zipmap": False}}})
