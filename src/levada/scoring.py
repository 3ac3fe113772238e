"""A model in ONNX, run the same way wherever it is scored.

Training verifies the exported model, the gate compares champion and challenger, and the predictor serves, all by
:class:`OnnxModel`: what was checked is what answers. What the model needs to know about itself (features, labels)
is written into the ONNX file, so one hash covers the graph and the meaning of its inputs and outputs.

A missing number reaches the model as NaN and a missing text as the empty text: ONNX has no null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

META_KEY: Final = "levada"
"""Key of the ONNX file's metadata that holds the :class:`Meta` as JSON."""
PROBABILITIES: Final = "probabilities"
"""Name of the output with one column of scores a label."""
VALUE: Final = "variable"
"""Name of the output of a regression, one column with the predicted number."""

Columns = Mapping[str, NDArray[Any]]
"""One array of n values a feature: float64 with NaN for missing numbers, or objects (str)."""
Label = str | int | bool | float
"""A class, or the number that a regression predicts."""


class ScoringError(ValueError):
    """A model file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Feature:
    """One input of a model."""

    name: str
    type: str
    """``string``, ``long``, ``double`` or ``boolean``, as declared when the model was trained."""
    required: bool


@dataclass(frozen=True)
class Meta:
    """What a model's inputs and outputs mean."""

    features: tuple[Feature, ...]
    label: str
    """Name of the field that is predicted."""
    labels: tuple[Label, ...]
    """The classes, in the order of the columns of scores; none for a regression."""

    def to_json(self) -> str:
        """One JSON object; :meth:`from_json` reads it."""
        features = [{"name": f.name, "type": f.type, "required": f.required} for f in self.features]
        return json.dumps({"features": features, "label": self.label, "labels": self.labels})

    @classmethod
    def from_json(cls, text: str) -> Meta:
        """Read what :meth:`to_json` wrote."""
        raw = json.loads(text)
        return cls(tuple(Feature(**feature) for feature in raw["features"]), raw["label"], tuple(raw["labels"]))


def to_columns(rows: Sequence[Mapping[str, Any]], features: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """Turn checked rows into the columns a model takes."""
    columns: dict[str, NDArray[Any]] = {}
    for feature in features:
        name = feature.name
        if feature.type == "string":
            columns[name] = np.array([row[name] if row[name] is not None else "" for row in rows], dtype=object)
        else:
            columns[name] = np.array([row[name] for row in rows], dtype=np.float64)  # None becomes NaN
    return columns


class OnnxModel:
    """A classifier or a regression in ONNX with the meaning of its inputs and outputs.

    Attributes:
        meta: features and labels.
        sha256: hex digest of the file.
    """

    def __init__(self, raw: bytes) -> None:
        """Load a model from the bytes of its file.

        Raises:
            ScoringError: it is no ONNX model of ours.
        """
        options = ort.SessionOptions()
        # A tabular model is far too small to share between threads; more only cost switches.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
            self.meta = Meta.from_json(self._session.get_modelmeta().custom_metadata_map[META_KEY])
        except Exception as error:  # onnxruntime raises a class of its own for each status
            raise ScoringError(f"the model file cannot be loaded: {error}") from error
        inputs = {node.name for node in self._session.get_inputs()}
        if inputs != {feature.name for feature in self.meta.features}:
            raise ScoringError(f"the model's inputs {sorted(inputs)} are not the features it names")
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self._names = [feature.name for feature in self.meta.features]
        self._texts = any(feature.type == "string" for feature in self.meta.features)
        self._outputs = [PROBABILITIES if self.meta.labels else VALUE]

    def scores(self, columns: Columns) -> NDArray[np.float64]:
        """Probability of every label for every row, shape (rows, labels); of a regression its value, (rows, 1)."""
        return self._run({name: columns[name].reshape(-1, 1) for name in self._names})

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
        """As :meth:`scores`, for checked rows that have their values in the order of the features, None for missing."""
        if self._texts:
            records = [dict(zip(self._names, row, strict=True)) for row in rows]
            return self.scores(to_columns(records, self.meta.features))
        # One array for all of them, with a feature in each of its rows: an array a feature takes several times as long.
        matrix = np.array(rows, dtype=np.float64).T.copy()
        return self._run(dict(zip(self._names, matrix[:, :, np.newaxis], strict=True)))

    def _run(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = self._session.run(self._outputs, feed)[0]
        return result

    def check(self) -> None:
        """Score one row of zeros and empty texts.

        Raises:
            ScoringError: the answer is not one probability a label, or not one finite value.
        """
        row = {feature.name: "" if feature.type == "string" else 0.0 for feature in self.meta.features}
        scores = self.scores(to_columns([row], self.meta.features))
        if not self.meta.labels:
            if scores.shape != (1, 1) or not np.isfinite(scores).all():
                raise ScoringError(f"a check prediction gave {scores.tolist()}, not one number")
            return
        if scores.shape != (1, len(self.meta.labels)) or not abs(float(scores.sum()) - 1.0) < 1e-3:
            raise ScoringError(f"a check prediction gave {scores.shape[1:]} scores for {len(self.meta.labels)} labels")

    def predict(self, columns: Columns) -> list[Label]:
        """The most probable label of every row, or the value of a regression."""
        if not self.meta.labels:
            values: list[Label] = self.scores(columns)[:, 0].tolist()
            return values
        return [self.meta.labels[index] for index in self.scores(columns).argmax(axis=1).tolist()]
