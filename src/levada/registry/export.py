"""From a fitted scikit-learn estimator to the ONNX file that serves."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import pandas as pd
from skl2onnx import to_onnx, update_registered_converter
from skl2onnx.algebra.onnx_ops import OnnxIsNaN, OnnxWhere
from skl2onnx.common.data_types import DoubleTensorType, StringTensorType
from sklearn.impute import SimpleImputer

from levada.registry.errors import TrainingError
from levada.scoring import META_KEY, Columns, Meta, OnnxModel

TOLERANCE: Final = 1e-5
"""Largest difference between a score of scikit-learn and of ONNX Runtime."""


def _imputed_shape(operator: Any) -> None:
    source = operator.inputs[0]
    operator.outputs[0].type = type(source.type)([source.get_first_dimension(), len(operator.raw_operator.statistics_)])


def _impute(scope: Any, operator: Any, container: Any) -> None:
    opset = container.target_opset
    fill = np.asarray(operator.raw_operator.statistics_, dtype=np.float64).reshape(1, -1)
    missing = OnnxIsNaN(operator.inputs[0], op_version=opset)
    filled = OnnxWhere(missing, fill, operator.inputs[0], op_version=opset, output_names=operator.outputs[:1])
    filled.add_to(scope, container)


def to_onnx_file(estimator: Any, meta: Meta) -> bytes:
    """Convert a fitted estimator; inputs are one double or string column of shape (rows, 1) a feature.

    Raises:
        TrainingError: there is no ONNX for what the trainer built.
    """
    # ONNX Runtime's Imputer knows single precision only, so missing numbers are filled by basic operators.
    update_registered_converter(SimpleImputer, "LevadaSimpleImputer", _imputed_shape, _impute, overwrite=True)
    inputs = [
        (feature.name, StringTensorType([None, 1]) if feature.type == "string" else DoubleTensorType([None, 1]))
        for feature in meta.features
    ]
    options = {id(estimator): {"zipmap": False}} if meta.labels else None
    try:
        model = to_onnx(estimator, initial_types=inputs, options=options)
    except Exception as error:  # skl2onnx has no class of its own for all that it raises
        raise TrainingError(
            f"the trainer's estimator cannot be exported to ONNX: {error}; it must be a scikit-learn pipeline that "
            "begins with a ColumnTransformer over the features and ends with a classifier or a regressor"
        ) from error
    return _with_meta(model, meta)


def with_meta(raw: bytes, meta: Meta) -> bytes:
    """An ONNX file with the meaning of its inputs and outputs written into it.

    Raises:
        TrainingError: it is no ONNX model.
    """
    try:
        model = onnx.load_model_from_string(raw)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise classes of their own
        raise TrainingError(f"what the trainer returned is no ONNX model: {error}") from error
    for entry in [entry for entry in model.metadata_props if entry.key == META_KEY]:
        model.metadata_props.remove(entry)
    return _with_meta(model, meta)


def _with_meta(model: Any, meta: Meta) -> bytes:
    entry = model.metadata_props.add()
    entry.key, entry.value = META_KEY, meta.to_json()
    raw: bytes = model.SerializeToString()
    return raw


def assert_equal(estimator: Any, model: OnnxModel, columns: Columns) -> float:
    """Compare the exported model with its source on every row; the largest difference of a score.

    The values of a regression have a unit, so their difference counts in parts of the largest of them.

    Raises:
        TrainingError: a label differs, or a score by more than :data:`TOLERANCE`.
    """
    frame = pd.DataFrame(columns)
    if model.meta.labels:
        expected = estimator.predict_proba(frame)
        differing = int(np.sum(np.asarray(model.predict(columns)) != np.asarray(estimator.predict(frame))))
        unit = 1.0
    else:
        expected, differing = np.asarray(estimator.predict(frame)).reshape(-1, 1), 0
        unit = max(float(np.abs(expected).max()), 1.0)
    furthest = float(np.abs(model.scores(columns) - expected).max()) / unit
    if differing or not furthest <= TOLERANCE:
        raise TrainingError(
            f"the exported model is not the trained one: {differing} of {len(frame)} labels differ, "
            f"scores by up to {furthest:.2g} (allowed {TOLERANCE:g}); this trainer cannot be served"
        )
    return furthest
