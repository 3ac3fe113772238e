"""Trainings that fail at every step: no version is left half-registered, and what serves stays."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import DataScan

from levada import evidence
from levada.config import Settings
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import export, tracking
from levada.registry.contract import Context
from levada.registry.errors import TrainingError
from levada.registry.promote import promote
from levada.registry.train import train
from levada.registry.trainers import linear

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides

KEY = b"the key of the gate"


def unfitted(*_: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def raising(*_: Any) -> Any:
    raise ZeroDivisionError("no rows to divide")


def regressor(rows: pa.Table, pipeline: Pipeline, _: Context) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    columns = ColumnTransformer([("all", "passthrough", list(pipeline.features))])
    return make_pipeline(columns, LinearRegression()).fit(rows.to_pandas(), range(len(rows)))


def nothing(*_: Any) -> Any:
    return None


def garbage(*_: Any) -> Any:
    return b"no model"


def unexportable(rows: pa.Table, pipeline: Pipeline, context: Context) -> Any:
    from sklearn.preprocessing import FunctionTransformer

    made = linear(rows, pipeline, context)
    made.steps.insert(0, ("mine", FunctionTransformer(lambda frame: frame)))
    return made


TRAINERS = {f.__name__: f for f in (unfitted, raising, regressor, nothing, garbage, unexportable)}
Fault = tuple[str, Any, str, Exception]

# Where it breaks, what is broken there, and what the training then says.
FAULTS: list[Fault] = [
    ("the lake's catalogue is down", SqlCatalog, "load_table", OSError("no route to the catalogue")),
    ("the pin cannot be written", SqlCatalog, "commit_table", OSError("the disk is full")),
    ("the object store is down", DataScan, "to_arrow", OSError("no route to the store")),
    ("MLflow is down", MlflowClient, "search_model_versions", MlflowException("503")),
    ("MLflow is down for the champion", tracking, "versions", MlflowException("503")),
    ("MLflow is down for the frozen set", MlflowClient, "download_artifacts", MlflowException("503")),
    ("MLflow is down for the experiment", mlflow, "set_experiment", MlflowException("503")),
    ("MLflow is down for the run", mlflow, "start_run", MlflowException("503")),
    ("MLflow is down for parameters", mlflow, "log_params", MlflowException("503")),
    ("MLflow is down for metrics", mlflow, "log_metrics", MlflowException("503")),
    ("an upload breaks off", MlflowClient, "log_artifacts", OSError("connection reset")),
    (
        "the model's upload breaks off",
        importlib.import_module("mlflow.sklearn"),
        "log_model",
        OSError("connection reset"),
    ),
    ("what was stored cannot be read back", mlflow.artifacts, "download_artifacts", OSError("404")),
    ("the model cannot be named", MlflowClient, "create_registered_model", MlflowException("503")),
    ("the version cannot be registered", MlflowClient, "create_model_version", MlflowException("503")),
    ("the ONNX file differs", export, "TOLERANCE", TrainingError("the exported model is not the trained one")),
]


@contextmanager
def broken(place: Any, name: str, error: Exception) -> Iterator[None]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, -1.0 if name == "TOLERANCE" else fail)
        yield


@pytest.mark.row(49, part="leaves serving as it was")
def test_twenty_faulty_trainings_leave_no_version_and_change_nothing_that_serves(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(iris, rows)
    train(settings, iris, "good")
    record = promote(settings, iris, "good")
    client = tracking.connect(settings)

    def serving() -> tuple[int, str, evidence.Record | None]:
        found = tracking.versions(client, "iris")
        newest = evidence.newest(KEY, "iris", ((str(each.version), each.tags) for each in found))
        return len(found), str(client.get_model_version_by_alias("iris", "champion").version), newest

    before = (1, "1", record)
    assert serving() == before
    said = []
    for number, (what, place, name, error) in enumerate(FAULTS):
        with broken(place, name, error), pytest.raises(type(error)) as caught:
            train(settings, iris, f"faulty-{number}")
        said.append(f"{what}: {caught.value}")
        assert serving() == before, what
        assert str(error) in str(caught.value)
    module = ModuleType("faulty_trainers")
    for name, trainer in TRAINERS.items():
        setattr(module, name, trainer)
    monkeypatch.setitem(sys.modules, "faulty_trainers", module)
    declared = iris.model_dump(exclude={"name"})
    for name in TRAINERS:
        model = {**declared["model"], "trainer": f"faulty_trainers:{name}"}
        with pytest.raises(TrainingError) as stopped:
            train(settings, parse_pipeline({**declared, "model": model}, "iris"), f"faulty-{name}")
        said.append(str(stopped.value)[:200])
        assert serving() == before, name
    post(iris, [{**rows[0], "petal_width": float("nan")}])
    with pytest.raises(TrainingError, match=r"no number in petal_width \(1 of \d+ rows\)") as refused:
        train(settings, iris, "nan")
    said.append(str(refused.value)[:200])
    assert serving() == before
    assert len(said) >= 20
    assert any("must return a classifier; Pipeline has no predict_proba" in each for each in said)
    print("\n".join(said))


@pytest.mark.row(49, part="a retry succeeds")
def test_a_retry_of_the_same_run_succeeds_whatever_broke(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "good")
    promote(settings, iris, "good")
    for version, (what, place, name, error) in enumerate(FAULTS, 2):
        with broken(place, name, error), pytest.raises(type(error)):
            train(settings, iris, f"again-{version}")
        assert train(settings, iris, f"again-{version}") == str(version), what


@pytest.mark.row(49, part="a killed upload")
def test_a_training_that_is_killed_in_its_upload_leaves_no_version(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    upload = MlflowClient.log_artifacts

    def half(client: MlflowClient, run_id: str, folder: str) -> None:
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for path in files[len(files) // 2 :]:
            path.unlink()
        upload(client, run_id, folder)
        os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        MlflowClient.log_artifacts = half
        train(settings, iris, "a")

    killed = multiprocessing.get_context("fork").Process(target=child)
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert tracking.versions(tracking.connect(settings), "iris") == []
    assert train(settings, iris, "a") == "1"
