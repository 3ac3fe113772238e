"""Training: from a snapshot of the lake to a registered model version that nothing serves yet."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import structlog

import levada
from levada.evidence import MODEL_FILE, RUN_TAG, SNAPSHOT_TAG
from levada.lake import catalog
from levada.registry import data, export, gate, tracking
from levada.registry.errors import TrainingError
from levada.scoring import Meta, OnnxModel

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from levada.config import Settings
    from levada.pipeline import Pipeline

EVALUATION_FILE: Final = "eval/rows.parquet"
EVALUATION_TAG: Final = "levada.eval.sha256"
_PACKAGES: Final = ("scikit-learn", "skops", "numpy", "pandas", "skl2onnx", "onnx", "onnxruntime", "mlflow-skinny")
_EXAMPLE_ROWS: Final = 5

log = structlog.get_logger()


def train(settings: Settings, pipeline: Pipeline, run: str) -> str:
    """Train the pipeline's model for one DAG run and return the number of its registered version.

    A version is registered last, when everything it needs is stored, so a training that is killed leaves none;
    the same run asked again finds the finished version and does nothing.

    Raises:
        NotEnoughData: the lake does not hold enough yet.
        TrainingError: anything else that a retry does not heal.
    """
    tracking.check_run(run)
    client = tracking.connect(settings)
    if (known := tracking.version_of_run(client, pipeline.name, run)) is not None:
        log.info("this run is trained already", pipeline=pipeline.name, run=run, version=known.version)
        return str(known.version)
    build = load_trainer(pipeline)
    snapshot, rows = data.read(catalog(settings), pipeline, run)
    training, evaluation = rows.split()
    estimator = build(pipeline)
    estimator.fit(pd.DataFrame(training.columns), training.labels)
    meta = Meta(rows.features, rows.label, tuple(estimator.classes_.tolist()))
    raw = export.to_onnx_file(estimator, meta)
    model = OnnxModel(raw)
    export.assert_equal(estimator, model, rows.columns)
    accuracy = gate.accuracy(evaluation.labels.tolist(), model.predict(evaluation.columns))
    tags = _lineage(pipeline, build, run, snapshot)
    version = _register(client, pipeline, run, tags, estimator, raw, training, evaluation, accuracy)
    log.info(
        "trained", pipeline=pipeline.name, run=run, version=version, snapshot=snapshot,
        rows=len(rows), held_out=len(evaluation), accuracy=accuracy,
    )  # fmt: skip
    return version


def load_trainer(pipeline: Pipeline) -> Callable[[Pipeline], Any]:
    """The function that the pipeline names as its trainer.

    Raises:
        TrainingError: there is no such module or function in this image.
    """
    name = data.declared_model(pipeline).trainer
    module, _, function = name.partition(":")
    try:
        trainer: Callable[[Pipeline], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f"pipeline {pipeline.name}: model.trainer {name} cannot be loaded: {error}; "
            "correct the name or put the module into the trainer image"
        ) from error
    return trainer


def _lineage(pipeline: Pipeline, build: Callable[[Pipeline], Any], run: str, snapshot: int) -> dict[str, str]:
    """What a version came from: data, code and environment."""
    source = inspect.getsource(inspect.getmodule(build) or build)
    return {
        RUN_TAG: run,
        SNAPSHOT_TAG: str(snapshot),
        "levada.table": ".".join(pipeline.table),
        "levada.trainer": data.declared_model(pipeline).trainer,
        "levada.trainer.sha256": hashlib.sha256(source.encode()).hexdigest(),
        "levada.version": levada.__version__,
    }


def _register(
    client: MlflowClient,
    pipeline: Pipeline,
    run: str,
    tags: dict[str, str],
    estimator: Any,
    onnx: bytes,
    training: data.Dataset,
    evaluation: data.Dataset,
    accuracy: float,
) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import infer_signature

    mlflow.set_experiment(pipeline.name)
    rows = evaluation.to_parquet()
    packages = {package: package_version(package) for package in _PACKAGES}
    with mlflow.start_run(run_name=run, tags=tags) as active, TemporaryDirectory() as folder:
        run_id = active.info.run_id
        mlflow.log_params(
            {
                "rows": len(training) + len(evaluation),
                "rows_held_out": len(evaluation),
                "features": ",".join(pipeline.features),
                "label": training.label,
                **packages,
            }
        )
        mlflow.log_metric("accuracy", accuracy)
        mlflow.log_text(pipeline.model_dump_json(by_alias=True, indent=2), "pipeline.json")
        files = {MODEL_FILE: onnx, "onnx/meta.json": OnnxModel(onnx).meta.to_json().encode(), EVALUATION_FILE: rows}
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        mlflow.log_artifacts(folder)
        example = pd.DataFrame(training.columns).head(_EXAMPLE_ROWS)
        logged = mlflow.sklearn.log_model(
            estimator,
            name="model",
            signature=infer_signature(example, estimator.predict(example)),
            input_example=example,
            serialization_format="skops",
            # Named here, MLflow does not start a process to find them out.
            pip_requirements=[f"{package}=={number}" for package, number in packages.items()],
        )
        try:
            client.create_registered_model(pipeline.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {**tags, EVALUATION_TAG: hashlib.sha256(rows).hexdigest()}
        version = client.create_model_version(
            pipeline.name, logged.model_uri, run_id, tags=tags, model_id=logged.model_id
        )
        return str(version.version)
