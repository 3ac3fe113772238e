"""The trainers that are in the image; :mod:`levada.registry.contract` says what each gets and gives back.

All three do classification and regression, fill missing values of optional numeric fields with the mean of the
training rows, and turn texts into one column a value; a text that training did not see counts for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from skl2onnx.sklapi import CastTransformer
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

if TYPE_CHECKING:
    import pyarrow as pa

    from levada.pipeline import Pipeline
    from levada.registry.contract import Context


def linear(rows: pa.Table, pipeline: Pipeline, context: Context) -> Any:
    """Logistic or ridge regression on scaled numbers, as strongly regularised as cross-validation says."""
    if _regression(pipeline):
        return _fit(rows, pipeline, RidgeCV(alphas=[10.0**power for power in range(-4, 5)]))
    return _fit(
        rows,
        pipeline,
        LogisticRegressionCV(scoring="neg_log_loss", cv=5, l1_ratios=(0,), max_iter=5000, use_legacy_attributes=False),
    )


def forest(rows: pa.Table, pipeline: Pipeline, context: Context) -> Any:
    """A random forest of 100 trees whose leaves have at least two rows."""
    kind = RandomForestRegressor if _regression(pipeline) else RandomForestClassifier
    return _fit(rows, pipeline, *_trees(kind(n_estimators=100, min_samples_leaf=2, random_state=context.seed)))


def boosting(rows: pa.Table, pipeline: Pipeline, context: Context) -> Any:
    """Gradient boosting: 100 trees of depth 3, each on four fifths of the rows."""
    kind = GradientBoostingRegressor if _regression(pipeline) else GradientBoostingClassifier
    return _fit(rows, pipeline, *_trees(kind(subsample=0.8, random_state=context.seed)))


def _trees(learner: Any) -> tuple[Any, Any]:
    # Trees see single precision here and in ONNX alike, so a value near a threshold falls to one side in both.
    return CastTransformer(dtype=np.float32), learner


def _regression(pipeline: Pipeline) -> bool:
    return pipeline.model is not None and pipeline.model.gate.regression


def _fit(rows: pa.Table, pipeline: Pipeline, *learner: Any) -> Any:
    fields = {name: pipeline.fields[name] for name in pipeline.features}
    texts = [name for name, field in fields.items() if field.type == "string"]
    complete = [name for name, field in fields.items() if field.type != "string" and field.required]
    optional = [name for name, field in fields.items() if field.type != "string" and not field.required]
    branches = [
        ("complete", StandardScaler(), complete),
        ("optional", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), optional),
        ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts),
    ]
    frame = rows.to_pandas()
    prepare = ColumnTransformer([branch for branch in branches if branch[2]])
    return make_pipeline(prepare, *learner).fit(frame[list(fields)], frame[rows.column_names[-1]])
