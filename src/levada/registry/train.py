"""Training: from a snapshot of the lake to a registered model version that nothing serves yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from levada.lake import catalog
from levada.registry import compare, contract, data, tracking
from levada.registry.compare import Answers
from levada.registry.contract import Context, Fitted
from levada.registry.data import declared_model
from levada.registry.dataset import Dataset, sides, trainable
from levada.registry.errors import TrainingError
from levada.registry.frozen import FROZEN_FILE, Frozen

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient

    from levada.config import Settings
    from levada.pipeline import Pipeline

log = structlog.get_logger()


@dataclass(frozen=True)
class Trained:
    """A model, the rows it is from, and how good it is on those that it has not seen."""

    fitted: Fitted
    training: Dataset
    held_out: Dataset
    metrics: dict[str, float]
    left_out: str
    """Classes with too few rows to be trained on, and their rows."""


@dataclass(frozen=True)
class Kept:
    """The frozen evaluation set whose rows are kept from a training."""

    run_id: str
    """The MLflow run that holds its file."""
    frozen: Frozen


def train(settings: Settings, pipeline: Pipeline, run: str) -> str:
    """Train the pipeline's model for one DAG run and return the number of its registered version.

    A version is registered last, when everything it needs is stored, so a training that is killed leaves none;
    the same run asked again finds the finished version and does nothing.

    Raises:
        NotEnoughData: the lake does not hold enough yet.
        TrainingError: anything else that a retry does not heal.
    """
    from levada.registry import record

    tracking.check_run(run)
    client = tracking.connect(settings)
    if (known := tracking.version_of_run(client, pipeline.name, run)) is not None:
        log.info("this run is trained already", pipeline=pipeline.name, run=run, version=known.version)
        return str(known.version)
    trainer = contract.load(pipeline)
    snapshot, rows = data.read(catalog(settings), pipeline, run)
    kept = kept_rows(client, pipeline)
    context = Context(contract.seed_of(run), run, log.bind(pipeline=pipeline.name, run=run))
    trained = fit(pipeline, trainer, rows, kept.frozen if kept is not None else None, context)
    version = record.register(client, pipeline, trainer, context, snapshot, kept, trained)
    log.info(
        "trained", pipeline=pipeline.name, run=run, version=version, snapshot=snapshot,
        rows=len(rows), held_out=len(trained.held_out), **trained.metrics,
    )  # fmt: skip
    return version


def fit(
    pipeline: Pipeline, trainer: contract.Trainer, rows: pa.Table, frozen: Frozen | None, context: Context
) -> Trained:
    """Split a snapshot, train, and measure: what a replay repeats.

    Args:
        pipeline: the declaration.
        trainer: the function that trains.
        rows: a snapshot, as :func:`levada.registry.data.read_at` gives it.
        frozen: the evaluation set whose rows are kept from the training.
        context: seed and run.

    Raises:
        NotEnoughData: the snapshot cannot be split.
        TrainingError: a feature is an identifier, or the trainer failed.
    """
    split = sides(rows, pipeline, frozen.rows if frozen is not None else None)
    training, held_out = trainable(split, pipeline)
    contract.refuse_identifiers(training)
    contract.refuse_missing(training)
    fitted = contract.fit(trainer, training, held_out, pipeline, context)
    return Trained(fitted, training, held_out, measure(Answers.of(fitted.model, held_out)), split.left_out_text)


def measure(answers: Answers) -> dict[str, float]:
    """Every metric that the answers allow, by name."""
    if not answers.labels:
        return {name: compare.metric(name, answers) for name in ("rmse", "r2")}
    found = {name: compare.metric(name, answers) for name in ("accuracy", "log_loss")}
    bins = compare.reliability(answers)
    return {**found, "brier": compare.brier(answers), "calibration_error": compare.calibration_error(bins)}


def kept_rows(client: MlflowClient, pipeline: Pipeline) -> Kept | None:
    """The frozen evaluation set of the present champion; None while there is none.

    The records say which version that is, unproven: training has no business with the gate's key. The gate looks
    whether the set that was kept apart is the one it judges by.
    """
    champion = tracking.champion(client, pipeline.name)
    if champion is None:
        return None
    return read_kept(client, pipeline, champion.run_id)


def read_kept(client: MlflowClient, pipeline: Pipeline, run_id: str, digest: str | None = None) -> Kept:
    """The frozen evaluation set that lies in an MLflow run.

    Raises:
        TrainingError: it is not the one with this digest.
    """
    raw = tracking.download(client, run_id, FROZEN_FILE)
    if digest is not None and hashlib.sha256(raw).hexdigest() != digest:
        raise TrainingError(f"{FROZEN_FILE} of run {run_id} is not the file that the training used")
    return Kept(run_id, Frozen.read(raw, data.judged_fields(pipeline), declared_model(pipeline).label))
