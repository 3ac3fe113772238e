"""A line in memory: rows arrive, challengers are trained, and the gate's own code judges them, many times a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from levada.pipeline import Pipeline
from levada.registry.case import Standing, assemble
from levada.registry.compare import Answers
from levada.registry.data import declared_model
from levada.registry.dataset import Dataset, sides, trainable
from levada.registry.frozen import Frozen
from levada.registry.gate import Verdict, judge

MEASURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def learn(rows: Dataset) -> Any:
    """Logistic regression. Equal rows become one that weighs as much: the same optimum, whatever their number."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    frame = pd.DataFrame({name: rows.columns[name] for name in MEASURES}).assign(label=rows.labels, weight=1.0)
    once = frame.groupby([*MEASURES, "label"], as_index=False).sum()
    weights = once["weight"].to_numpy()
    steps = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, solver="newton-cholesky"))
    return steps.fit(
        once[[*MEASURES]].to_numpy(), once["label"].to_numpy(),
        standardscaler__sample_weight=weights, logisticregression__sample_weight=weights,
    )  # fmt: skip


def ask(model: Any, rows: Dataset) -> Answers:
    values = np.column_stack([rows.columns[name] for name in MEASURES])
    return Answers(rows.labels, model.predict_proba(values), tuple(model.classes_.tolist()))


@dataclass
class Champion:
    version: int
    model: Any
    every: Dataset
    rows: int
    """Rows there were when it was trained."""


@dataclass
class MemoryLine:
    """Rows as (values, labels), and the champion."""

    pipeline: Pipeline
    values: list[NDArray[Any]] = field(default_factory=list)
    labels: list[pa.Array] = field(default_factory=list)
    versions: int = 0
    champion: Champion | None = None
    frozen: Frozen | None = None

    def post(self, values: NDArray[Any], labels: NDArray[Any]) -> None:
        self.values.append(values)
        self.labels.append(pa.array(labels))

    def snapshot(self) -> pa.Table:
        values = np.concatenate(self.values)
        number = np.arange(len(values))
        times = pa.array(number * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
        columns = {name: pa.array(values[:, place]) for place, name in enumerate(MEASURES)}
        ids = pa.array(number).cast(pa.string())
        return pa.table(
            {
                **columns,
                "species": pa.chunked_array(self.labels),
                "_event_id": ids,
                "_event_time": times,
                "_ingested_at": times,
            }
        )

    def gate(self, model: Any = None, *, approved: bool = False) -> Verdict:
        """Train a challenger (or take ``model``), judge it, and let it serve if the gate says so."""
        table = self.snapshot()
        split = sides(table, self.pipeline, self.frozen.rows if self.frozen is not None else None)
        training, _ = trainable(split, self.pipeline)
        challenger = model if model is not None else learn(training)
        standing, champion = None, self.champion
        if champion is not None:
            standing = Standing(
                str(champion.version), lambda rows: ask(champion.model, rows), "", champion.every,
                np.arange(len(table)) >= champion.rows,
            )  # fmt: skip
        found = assemble(self.pipeline, split, self.frozen, lambda rows: ask(challenger, rows), standing)
        verdict = judge(declared_model(self.pipeline).gate, found.case, approved=approved)
        self.versions += 1
        if verdict.outcome == "promoted":
            self.champion = Champion(self.versions, challenger, found.every, len(table))
            self.frozen = found.frozen.grown(found.held_out) if approved else found.frozen
        return verdict

    def accuracy(self, values: NDArray[Any], labels: NDArray[Any]) -> float:
        """Of what is served, on rows that are known to be true."""
        assert self.champion is not None
        return float(np.mean(self.champion.model.predict(values) == labels))
