"""ONNX against scikit-learn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest

from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import export
from levada.registry.contract import Context
from levada.registry.data import features_of
from levada.registry.dataset import Dataset
from levada.registry.errors import TrainingError
from levada.registry.trainers import boosting, forest, linear
from levada.scoring import Meta, OnnxModel, ScoringError, to_columns

FIELDS = {
    "income": {"type": "double", "required": False},
    "age": {"type": "long"},
    "member": {"type": "boolean"},
    "color": {"type": "string", "required": False},
    "plan": {"type": "string"},
}


def made_up_rows(count: int) -> list[dict[str, Any]]:
    chance = random.Random(7)
    return [
        {
            "income": chance.choice([None, chance.gauss(3e6, 1e6)]),
            "age": chance.randrange(18, 2**40),
            "member": chance.random() < 0.5,
            "color": chance.choice([None, "red", "grün", ""]),
            "plan": chance.choice("abcdef"),
        }
        for _ in range(count)
    ]


def truth(row: dict[str, Any], kind: str) -> str | int | bool:
    good = (row["income"] or 3e6) > 3e6 or row["color"] == "red"
    return {"string": "good" if good else "bad", "long": 7 if good else -2, "boolean": good}[kind]


def fitted(pipeline: Pipeline, columns: dict[str, Any], labels: Any, trainer: Any = linear) -> Any:
    rows = Dataset(features_of(pipeline), "y", columns, labels)
    return trainer(rows.to_arrow(), pipeline, Context(7, "a", None))


@pytest.mark.row(43)
@pytest.mark.parametrize("trainer", [linear, forest, boosting])
@pytest.mark.parametrize("kind", ["string", "long", "boolean"])
def test_every_type_of_feature_and_label_scores_alike(kind: str, trainer: Any) -> None:
    pipeline = parse_pipeline({"fields": {**FIELDS, "y": {"type": kind}}, "model": {"label": "y"}}, "mixed")
    rows = made_up_rows(400)
    columns = to_columns(rows, features_of(pipeline))
    labels = np.array([truth(row, kind) for row in rows])
    estimator = fitted(pipeline, columns, labels, trainer)
    meta = Meta(features_of(pipeline), "y", tuple(estimator.classes_.tolist()))
    model = OnnxModel(export.to_onnx_file(estimator, meta))
    assert model.meta == meta
    model.check()
    export.assert_equal(estimator, model, columns)
    unseen = to_columns([{**rows[0], "plan": "never seen", "income": None}], meta.features)
    export.assert_equal(estimator, model, unseen)
    assert model.predict(columns) == estimator.predict(pd.DataFrame(columns)).tolist()


@pytest.mark.row(43)
@pytest.mark.parametrize("trainer", [linear, forest, boosting])
def test_a_regression_predicts_alike(trainer: Any) -> None:
    gate = {"metric": "rmse", "floor": 1e9}
    pipeline = parse_pipeline(
        {"fields": {**FIELDS, "y": {"type": "double"}}, "model": {"label": "y", "gate": gate}}, "mixed"
    )
    rows = made_up_rows(400)
    columns = to_columns(rows, features_of(pipeline))
    values = np.array([(row["income"] or 3e6) / 1e3 + 100 * (row["color"] == "red") for row in rows])
    estimator = fitted(pipeline, columns, values, trainer)
    model = OnnxModel(export.to_onnx_file(estimator, Meta(features_of(pipeline), "y", ())))
    model.check()
    assert export.assert_equal(estimator, model, columns) <= 1e-5
    assert model.scores(columns).shape == (400, 1)
    assert model.predict(columns) == pytest.approx(estimator.predict(pd.DataFrame(columns)).tolist(), rel=1e-5)


def test_a_model_that_differs_from_its_source_is_refused() -> None:
    pipeline = parse_pipeline({"fields": {**FIELDS, "y": {"type": "long"}}, "model": {"label": "y"}}, "mixed")
    rows = made_up_rows(200)
    columns = to_columns(rows, features_of(pipeline))
    estimator = fitted(pipeline, columns, np.array([truth(row, "long") for row in rows]))
    model = OnnxModel(export.to_onnx_file(estimator, Meta(features_of(pipeline), "y", (-2, 7))))
    other = fitted(pipeline, columns, np.array([7 if row["plan"] < "c" else -2 for row in rows]))
    with pytest.raises(TrainingError, match="is not the trained one"):
        export.assert_equal(other, model, columns)


def test_a_file_that_is_no_model_of_ours_is_refused() -> None:
    with pytest.raises(ScoringError, match="cannot be loaded"):
        OnnxModel(b"not a model")


def test_an_estimator_without_column_names_is_refused_with_what_to_do() -> None:
    from sklearn.linear_model import LogisticRegression

    pipeline = parse_pipeline({"fields": {**FIELDS, "y": {"type": "long"}}, "model": {"label": "y"}}, "mixed")
    features = [feature for feature in features_of(pipeline) if feature.name in ("age", "member")]
    rows = made_up_rows(50)
    frame = pd.DataFrame(to_columns(rows, features))
    estimator = LogisticRegression().fit(frame, [truth(row, "long") for row in rows])
    with pytest.raises(TrainingError, match="begins with a ColumnTransformer over the features"):
        export.to_onnx_file(estimator, Meta(tuple(features), "y", (-2, 7)))
