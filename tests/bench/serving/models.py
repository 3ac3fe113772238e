"""The models of the bench: made once by scikit-learn, then as ONNX for us and as joblib for the others."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline as Steps
from sklearn.preprocessing import StandardScaler

from levada.registry.export import to_onnx_file
from levada.scoring import Feature, Meta

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "iris.csv"


@dataclass(frozen=True)
class Trained:
    """One model in both forms, and how its pipeline is declared."""

    name: str
    onnx: bytes
    joblib: Path
    declared: dict[str, Any]
    rows: list[list[float]]
    """100 rows to ask with."""

    def body(self, kind: str, rows: int) -> bytes:
        """A request as one of the servers takes it."""
        asked = self.rows[:rows]
        names = [name for name in self.declared["fields"] if name != "label"]
        if kind == "levada":
            return json.dumps({"instances": [dict(zip(names, row, strict=True)) for row in asked]}).encode()
        if kind == "mlserver":
            flat = [value for row in asked for value in row]
            tensor = {"name": "predict", "shape": [rows, len(names)], "datatype": "FP64", "data": flat}
            return json.dumps({"inputs": [tensor]}).encode()
        return json.dumps({"inputs": asked}).encode()


def train(folder: Path) -> dict[str, Trained]:
    """Linear and forest on iris; linear on 50 features that are made up."""
    with IRIS.open() as file:
        rows = list(csv.DictReader(file))
    iris = np.array([[float(value) for name, value in row.items() if name != "species"] for row in rows])
    names = [name for name in rows[0] if name != "species"]
    species = np.array([row["species"] for row in rows])
    many, classes = make_classification(1000, 50, n_informative=20, random_state=0)
    wide = np.array(["no", "yes"])[classes]
    forest = RandomForestClassifier(100, random_state=0, n_jobs=1)
    return {
        "linear": _fit(folder, "linear", names, iris, species, LogisticRegression(max_iter=1000)),
        "forest": _fit(folder, "forest", names, iris, species, forest),
        "wide": _fit(folder, "wide", [f"f{n}" for n in range(50)], many, wide, LogisticRegression(max_iter=1000)),
    }


def _fit(folder: Path, name: str, names: list[str], values: Any, labels: Any, learner: Any) -> Trained:
    # By place, not by name: what the others are sent has no names.
    steps = Steps([("scale", ColumnTransformer([("all", StandardScaler(), [*range(len(names))])])), ("learn", learner)])
    path = folder / f"{name}.joblib"
    joblib.dump(steps.fit(values, labels), path)
    named = Steps([("scale", ColumnTransformer([("all", StandardScaler(), names)])), ("learn", learner)])
    named.fit(pd.DataFrame(dict(zip(names, values.T, strict=True))), labels)
    meta = Meta(tuple(Feature(n, "double", True) for n in names), "label", tuple(str(c) for c in named.classes_))
    fields = {**{n: {"type": "double"} for n in names}, "label": {"type": "string"}}
    declared = {"fields": fields, "model": {"label": "label"}}
    return Trained(name, to_onnx_file(named, meta), path, declared, values[:100].round(4).tolist())
