"""What a trainer is given and what it must give back.

A trainer is a function ``(rows, pipeline, context)``, named in the declaration and found in the image that trains:

- ``rows``, a ``pyarrow.Table``: the training rows. One column a feature (float64 with NaN for missing numbers and
  booleans as 0 and 1; string with "" for missing text), then the label. ``rows.to_pandas()`` is what the estimator
  will be asked with, and the label. Rows held out from training are never in it.
- ``pipeline``, a :class:`levada.pipeline.Pipeline`: the declaration.
- ``context``, a :class:`Context`: seed, run and logger.

It returns a *fitted* scikit-learn-compatible estimator with all its preprocessing inside, which begins with a
ColumnTransformer that names the features: a classifier with ``classes_`` and ``predict_proba``, or a regressor. Or it
returns the bytes of an ONNX model with one input of shape (rows, 1) a feature, double or string, and the output
``probabilities`` of shape (rows, labels), labels in sorted order, or ``variable`` of shape (rows, 1).
"""

from __future__ import annotations

import importlib
import inspect
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import stats
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from levada.registry import export
from levada.registry.data import declared_model
from levada.registry.errors import TrainingError
from levada.scoring import Meta, OnnxModel, ScoringError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from levada.pipeline import Pipeline
    from levada.registry.dataset import Dataset

    Trainer = Callable[[pa.Table, Pipeline, "Context"], Any]

_TELLS_ROWS_APART: Final = 0.9
"""A text feature with more distinct values than this share of rows is an identifier."""
_GAPS: Final = 10
"""Whole numbers of which fewer than one in this many is there do not count; a meter that runs on may read so."""
_REPEATED: Final = 0.01
"""Nor do those of which more than this share, and one, repeat others."""
_MEASURED: Final = 0.001
"""Least chance of so few repeats with which whole numbers are taken for measurements."""


@dataclass(frozen=True)
class Context:
    """What a trainer may use beside the rows and the declaration."""

    seed: int
    """Seed of every random choice, 0 to 2^31 - 1; the same seed must give the same model."""
    run: str
    """Id of the DAG run."""
    log: Any
    """A structlog logger."""


@dataclass(frozen=True)
class Fitted:
    """What a trainer made, and what of it serves."""

    estimator: Any | None
    """None if the trainer returned ONNX."""
    raw: bytes
    """The ONNX file."""
    model: OnnxModel
    difference: float
    """Largest difference of a score between estimator and ONNX file; 0 without an estimator."""


def seed_of(run: str) -> int:
    """The seed of a run: the same run is trained alike, another one is not."""
    return zlib.crc32(run.encode()) & 0x7FFFFFFF


def load(pipeline: Pipeline) -> Trainer:
    """The function that the pipeline names as its trainer.

    Raises:
        TrainingError: there is no such module or function in this image.
    """
    name = declared_model(pipeline).trainer
    module, _, function = name.partition(":")
    try:
        trainer: Trainer = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f"pipeline {pipeline.name}: model.trainer {name} cannot be loaded: {error}; "
            "correct the name, or name the image that has the module as model.image"
        ) from error
    return trainer


def source_digest(trainer: Trainer) -> str:
    """Hex SHA-256 of the source of the trainer's module."""
    return sha256(inspect.getsource(inspect.getmodule(trainer) or trainer).encode()).hexdigest()


def refuse_identifiers(rows: Dataset) -> None:
    """Refuse features that tell rows apart instead of describing them: a model learns them by heart.

    Texts of which nearly every row has its own, and whole numbers that count. A few rows that were sent again, ids that
    are missing and numbers far away hide neither.

    Args:
        rows: the rows that a trainer would get.

    Raises:
        TrainingError: naming the features and what to do.
    """
    found = []
    for feature in rows.features:
        column = rows.columns[feature.name]
        if feature.type == "string":
            given = column[column != ""]
            if len(given) and len(set(given.tolist())) > _TELLS_ROWS_APART * len(given) > 20:
                found.append(feature.name)
        elif feature.type == "long" and _counts(column[~np.isnan(column)]):
            found.append(feature.name)
    if found:
        raise TrainingError(
            f"model.features: {', '.join(found)} look like identifiers, nearly every row has a value of its own: take "
            "them out, or list the features without them"
        )


def _counts(given: NDArray[np.float64]) -> bool:
    """Whether whole numbers lie close together and yet avoid one another, as numbers that are given out do.

    Of n values drawn independently from a span of s, whatever their distribution, at least n(n-1)/2s pairs are
    expected to be equal, so hardly a repeat in a short span is no chance.
    """
    cut = len(given) // 100
    inner = np.sort(given)[cut : len(given) - cut]
    if len(inner) <= 20:
        return False
    span = np.ptp(inner) + 1
    repeats = len(inner) - len(np.unique(inner))
    expected = len(inner) * (len(inner) - 1) / (2 * span)
    return bool(
        span < _GAPS * len(inner)
        and repeats <= 1 + _REPEATED * len(inner)
        and stats.poisson.cdf(repeats, expected) < _MEASURED
    )


def refuse_missing(rows: Dataset) -> None:
    """Refuse numbers that are missing although every event must have them: no trainer expects that.

    Raises:
        TrainingError: naming the features and what to do.
    """
    found = [
        f"{feature.name} ({int(np.isnan(rows.columns[feature.name]).sum())} of {len(rows)} rows)"
        for feature in rows.features
        if feature.type != "string" and feature.required and np.isnan(rows.columns[feature.name]).any()
    ]
    if found:
        raise TrainingError(
            f"no number in {', '.join(found)}: rows from before the field was declared lack it; declare it with "
            "`required: false`, and the trainer fills what is missing"
        )


def fit(trainer: Trainer, rows: Dataset, probe: Dataset, pipeline: Pipeline, context: Context) -> Fitted:
    """Run a trainer and turn what it returns into the file that serves.

    Args:
        trainer: the function.
        rows: the training rows.
        probe: rows on which the ONNX file is compared with the estimator.
        pipeline: the declaration.
        context: what the trainer gets beside.

    Raises:
        TrainingError: the trainer failed, or broke the contract.
    """
    name, regression = declared_model(pipeline).trainer, declared_model(pipeline).gate.regression
    try:
        made = trainer(rows.to_arrow(), pipeline, context)
    except TrainingError:
        raise
    except Exception as error:  # a user's code may raise anything
        context.log.error("the trainer failed", trainer=name, exc_info=error)
        raise TrainingError(f"trainer {name} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, bytes):
        labels = () if regression else tuple(sorted(set(rows.labels.tolist())))
        return _checked(name, None, export.with_meta(made, Meta(rows.features, rows.label, labels)), probe)
    try:
        check_is_fitted(made)
    except (NotFittedError, TypeError) as error:
        raise TrainingError(f"trainer {name} must return a fitted estimator or the bytes of an ONNX model") from error
    needed = ("predict",) if regression else ("predict_proba", "classes_")
    if lacking := [each for each in needed if not hasattr(made, each)]:
        kind = "regressor" if regression else "classifier"
        raise TrainingError(f"trainer {name} must return a {kind}; {type(made).__name__} has no {', '.join(lacking)}")
    labels = () if regression else tuple(made.classes_.tolist())
    return _checked(name, made, export.to_onnx_file(made, Meta(rows.features, rows.label, labels)), probe)


def _checked(name: str, estimator: Any | None, raw: bytes, probe: Dataset) -> Fitted:
    try:
        model = OnnxModel(raw)
        model.check()
    except ScoringError as error:
        raise TrainingError(f"trainer {name} made a model that cannot serve: {error}") from error
    difference = export.assert_equal(estimator, model, probe.columns) if estimator is not None else 0.0
    return Fitted(estimator, raw, model, difference)
