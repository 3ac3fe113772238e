"""Estimators that learn from a pipeline's table.

A trainer is a function ``(pipeline) -> estimator``. The estimator is not yet fitted; it takes a pandas DataFrame
with one column a feature (float64 with NaN for missing numbers and booleans as 0 and 1; str with "" for missing
text), begins with a ColumnTransformer that names these columns, has ``predict_proba`` and ``classes_``, and holds
all its preprocessing, because it alone is what serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import Pipeline as Steps
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

if TYPE_CHECKING:
    from levada.pipeline import Pipeline


def linear(pipeline: Pipeline) -> Any:
    """Logistic regression on scaled numbers and one-hot texts, as strongly regularised as cross-validation says.

    Missing values of optional numeric fields become the mean of the training rows; a text that training did not
    see counts for nothing.
    """
    fields = {name: pipeline.fields[name] for name in pipeline.features}
    texts = [name for name, field in fields.items() if field.type == "string"]
    complete = [name for name, field in fields.items() if field.type != "string" and field.required]
    optional = [name for name, field in fields.items() if field.type != "string" and not field.required]
    branches = [
        ("complete", StandardScaler(), complete),
        ("optional", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), optional),
        ("texts", OneHotEncoder(handle_unknown="ignore"), texts),
    ]
    classify = LogisticRegressionCV(
        scoring="neg_log_loss", cv=5, l1_ratios=(0,), max_iter=5000, use_legacy_attributes=False
    )
    return Steps(
        [
            ("prepare", ColumnTransformer([branch for branch in branches if branch[2]])),
            ("classify", classify),
        ]
    )
