"""What is kept of a training: everything that serves, judges, or is needed to repeat it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

import levada
from levada.evidence import EXAMPLE_FILE, EXAMPLE_TAG, MODEL_FILE, RUN_TAG, SNAPSHOT_TAG
from levada.registry import contract, tracking
from levada.registry.data import declared_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from levada.pipeline import Pipeline
    from levada.registry.contract import Context, Fitted, Trainer
    from levada.registry.dataset import Dataset
    from levada.registry.train import Kept, Trained

EVALUATION_FILE: Final = "eval/rows.parquet"
EVALUATION_TAG: Final = "levada.eval.sha256"
PIPELINE_FILE: Final = "pipeline.json"
ENVIRONMENT_FILE: Final = "environment.txt"
DIGESTS_FILE: Final = "sha256.json"
DIGESTS_TAG: Final = "levada.files.sha256"
FROZEN_RUN_TAG: Final = "levada.frozen.run"
FROZEN_TAG: Final = "levada.frozen.sha256"
SEED_TAG: Final = "levada.seed"
IMAGE_TAG: Final = "levada.image"
IMAGE_DIGEST_TAG: Final = "levada.image.digest"
UNKNOWN: Final = "unknown"
SOURCE_TAG: Final = "levada.trainer.sha256"
_MODEL: Final = ("scikit-learn", "skops", "numpy", "pandas", "skl2onnx", "onnx", "onnxruntime", "mlflow-skinny")
_EXAMPLE_ROWS: Final = 5


def environment() -> str:
    """Every installed distribution with its exact version, one a line, and the Python that runs them."""
    found = sorted({f"{each.metadata['Name']}=={each.version}".lower() for each in distributions()})
    return "\n".join([f"python=={platform.python_version()}", *found]) + "\n"


def image() -> str:
    """Reference of the image this process runs in, with its digest where the chart was told one."""
    return os.environ.get("LEVADA_IMAGE", "none")


def image_digest() -> str:
    """Digest by which that reference pins the image; :data:`UNKNOWN` where it is a tag alone.

    A process cannot find out which image a tag meant when it was pulled: only Kubernetes knows, and what trains, which
    runs what users bring, has no rights there.
    """
    return image().partition("@")[2] or UNKNOWN


def example(fitted: Fitted, rows: Dataset) -> bytes:
    """The first rows as a client would send them, and the scores that any runtime must give for them."""
    few = rows.take(np.arange(min(len(rows), _EXAMPLE_ROWS)))
    instances = [
        {feature.name: _plain(feature.type, few.columns[feature.name][place]) for feature in few.features}
        for place in range(len(few))
    ]
    scores = fitted.model.scores(few.columns).tolist()
    return json.dumps({"instances": instances, "scores": scores}).encode()


def _plain(kind: str, value: Any) -> Any:
    """A feature as JSON has it: missing numbers are null, booleans and whole numbers are such."""
    if kind == "string":
        return str(value)
    if math.isnan(value):
        return None
    return {"boolean": bool, "long": int}.get(kind, float)(value)


def register(
    client: MlflowClient,
    pipeline: Pipeline,
    trainer: Trainer,
    context: Context,
    snapshot: int,
    kept: Kept | None,
    trained: Trained,
) -> str:
    """Store a training in MLflow and register its version, the very last thing; the version's number."""
    import mlflow
    from mlflow.exceptions import MlflowException

    fitted = trained.fitted
    if image_digest() == UNKNOWN:
        context.log.warning(
            "the image is not pinned by a digest, so the version cannot say which it was: write model.image, or "
            "batch.trainer.image.digest in the chart's values, with one",
            image=image(),
        )
    files = {
        MODEL_FILE: fitted.raw,
        "onnx/meta.json": fitted.model.meta.to_json().encode(),
        EXAMPLE_FILE: example(fitted, trained.training),
        EVALUATION_FILE: trained.held_out.to_parquet(),
        PIPELINE_FILE: pipeline.model_dump_json(by_alias=True, indent=2).encode(),
        ENVIRONMENT_FILE: environment().encode(),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    tags = {
        RUN_TAG: context.run,
        SNAPSHOT_TAG: str(snapshot),
        SEED_TAG: str(context.seed),
        "levada.table": ".".join(pipeline.table),
        "levada.trainer": declared_model(pipeline).trainer,
        SOURCE_TAG: contract.source_digest(trainer),
        "levada.version": levada.__version__,
        IMAGE_TAG: image(),
        IMAGE_DIGEST_TAG: image_digest(),
        FROZEN_RUN_TAG: kept.run_id if kept is not None else "none",
        FROZEN_TAG: kept.frozen.sha256 if kept is not None else "none",
        EVALUATION_TAG: digests[EVALUATION_FILE],
        EXAMPLE_TAG: digests[EXAMPLE_FILE],
    }
    mlflow.set_experiment(pipeline.name)
    with mlflow.start_run(run_name=context.run, tags=tags) as active:
        run_id = active.info.run_id
        mlflow.log_params(
            {
                "rows": len(trained.training) + len(trained.held_out),
                "rows_held_out": len(trained.held_out),
                "left_out": trained.left_out or "none",
                "features": ",".join(pipeline.features),
                "label": trained.training.label,
                "seed": context.seed,
            }
        )
        mlflow.log_metrics({**trained.metrics, "onnx_difference": fitted.difference})
        tracking.upload(client, run_id, files)
        source, model_id = _log_model(fitted, trained.training)
        with TemporaryDirectory() as folder:
            # What is stored is what is hashed, so it is read back.
            stored = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder))
            for path in sorted(stored.rglob("*")):
                # MLflow writes the second when it hands a model out.
                if path.is_file() and path.name != "registered_model_meta":
                    name = f"model/{path.relative_to(stored)}"
                    digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        listed = json.dumps(digests, indent=2, sort_keys=True).encode()
        tracking.upload(client, run_id, {DIGESTS_FILE: listed})
        try:
            client.create_registered_model(pipeline.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags[DIGESTS_TAG] = hashlib.sha256(listed).hexdigest()
        version = client.create_model_version(pipeline.name, source, run_id, tags=tags, model_id=model_id)
        return str(version.version)


def _log_model(fitted: Fitted, rows: Dataset) -> tuple[str, str | None]:
    """Log the model in MLflow's own form, for people and tools; its URI and id. What serves is the ONNX file."""
    import mlflow
    import onnx
    import skops.io
    from mlflow.models import infer_signature

    frame = pd.DataFrame(rows.columns).head(_EXAMPLE_ROWS)
    packages = {each.metadata["Name"].lower(): each.version for each in distributions()}
    # Named here, MLflow does not start a process to find them out.
    requirements = [f"{package}=={packages[package]}" for package in _MODEL if package in packages]
    if fitted.estimator is None:
        few = rows.take(np.arange(len(frame)))
        # Columns of shape (rows, 1), as the file takes them.
        columns = {
            name: (column.astype(str) if column.dtype == object else column).reshape(-1, 1)
            for name, column in few.columns.items()
        }
        logged = mlflow.onnx.log_model(
            onnx.load_model_from_string(fitted.raw),
            name="model",
            signature=infer_signature(columns, fitted.model.scores(few.columns)),
            input_example=columns,
            onnx_execution_providers=["CPUExecutionProvider"],
            pip_requirements=requirements,
        )
    else:
        logged = mlflow.sklearn.log_model(
            fitted.estimator,
            name="model",
            signature=infer_signature(frame, fitted.estimator.predict(frame)),
            input_example=frame,
            serialization_format="skops",
            # What was just trained here is no stranger's file.
            skops_trusted_types=skops.io.get_untrusted_types(data=skops.io.dumps(fitted.estimator)),
            pip_requirements=requirements,
        )
    return str(logged.model_uri), logged.model_id
