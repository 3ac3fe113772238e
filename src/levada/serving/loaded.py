"""A verified model in memory: what it is asked, and how its answers are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from levada.scoring import Label, OnnxModel
from levada.serving.forms import BadRows, Form, Row, RowViolation

Scores = NDArray[np.float64]
Outcomes = Sequence[int] | Sequence[float]
"""For each row the number of its class, or the value that a regression predicts."""


class Loaded:
    """One version of a model, ready to answer."""

    def __init__(self, name: str, version: str, model: OnnxModel, *, run_id: str = "", snapshot: str = "") -> None:
        self.name = name
        self.version = version
        self.run_id = run_id
        self.snapshot = snapshot
        """Iceberg snapshot it was trained on."""
        self.loaded_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.model = model
        self.form = Form(model.meta.features)
        self.lines = f"levada-model: {name}\r\nlevada-model-version: {version}\r\n".encode()
        """Lines for the head of each answer."""
        self._names = [label if isinstance(label, str) else json.dumps(label) for label in model.meta.labels]
        self._labels = [orjson.dumps({"label": label}) for label in model.meta.labels]
        self._tail = b'],"model":' + orjson.dumps({"name": name, "version": version}) + b"}"

    def score(self, rows: Sequence[Row]) -> tuple[Outcomes, Scores]:
        """What the model says of each row.

        Raises:
            BadRows: rows for which it has no finite answer, because values are too large for it.
        """
        scores = self.model.score_rows(rows)
        if not np.isfinite(scores).all():
            message = "the model has no finite answer to these values"
            (bad,) = np.nonzero(~np.isfinite(scores).all(axis=1))
            raise BadRows([RowViolation("", "finite", message, number) for number in bad.tolist()], message)
        outcomes: Outcomes = scores.argmax(axis=1).tolist() if self._labels else scores[:, 0].tolist()
        return outcomes, scores

    def label(self, outcome: float) -> Label:
        """The class, or the value, of one outcome."""
        return self.model.meta.labels[int(outcome)] if self._labels else outcome

    def write(self, outcomes: Outcomes, scores: Scores) -> bytes:
        """The answer of /predict: a label, or a value, for each row."""
        if self._labels:
            written = b",".join([self._labels[outcome] for outcome in outcomes])  # type: ignore[index]
        else:
            written = b",".join([b'{"value":%b}' % orjson.dumps(outcome) for outcome in outcomes])
        return b'{"predictions":[' + written + self._tail

    def write_with_scores(self, outcomes: Outcomes, scores: Scores) -> bytes:
        """The answer of /predict with the probability of each label; the value of a regression has none."""
        if not self._labels:
            return self.write(outcomes, scores)
        labels = self.model.meta.labels
        predictions = [
            {"label": labels[int(outcome)], "scores": dict(zip(self._names, row, strict=True))}
            for outcome, row in zip(outcomes, scores.tolist(), strict=True)
        ]
        return b'{"predictions":' + orjson.dumps(predictions)[:-1] + self._tail

    def about(self) -> dict[str, Any]:
        """What /version tells."""
        features = [{"name": f.name, "type": f.type, "required": f.required} for f in self.model.meta.features]
        return {
            "name": self.name,
            "version": self.version,
            "run_id": self.run_id,
            "snapshot": self.snapshot,
            "loaded_at": self.loaded_at,
            "task": "classification" if self._labels else "regression",
            "label": self.model.meta.label,
            "labels": list(self.model.meta.labels),
            "features": features,
        }


Write = Callable[[Loaded, Outcomes, Scores], bytes]
"""How an answer is written."""
