"""Two applications for one server: the predictor with the iris model, and the least that ASGI can answer."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from levada.event import Checker
from levada.pipeline import Field, Pipeline, parse_pipeline
from levada.registry.data import features_of
from levada.registry.export import to_onnx_file
from levada.registry.trainers import linear
from levada.scoring import Meta, OnnxModel
from levada.serving.app import Predictor
from levada.serving.champion import Champion

ROOT = Path(__file__).parents[3]


def _predictor() -> Predictor:
    values = yaml.safe_load((ROOT / "values" / "local.yaml").read_text())
    pipeline = parse_pipeline(values["global"]["pipelines"]["iris"], "iris")
    with (ROOT / "examples" / "iris" / "iris.csv").open() as file:
        rows = list(csv.DictReader(file))
    import pandas as pd

    frame = pd.DataFrame({name: np.array([float(row[name]) for row in rows]) for name in pipeline.features})
    estimator = linear(pipeline).fit(frame, [row["species"] for row in rows])
    meta = Meta(features_of(pipeline), "species", tuple(str(label) for label in estimator.classes_))
    model = OnnxModel(to_onnx_file(estimator, meta))
    fields = {feature.name: Field(type="double") for feature in meta.features}
    champion = Champion("iris", "1", "", "", datetime.now(UTC).isoformat(), model,
                        Checker(Pipeline(name="iris", fields=fields)))  # fmt: skip
    return Predictor(pipeline, lambda: champion, lambda: True, 1_000_000)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer anything with a few bytes of JSON."""
    if scope["type"] == "http":
        await receive()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


predictor = _predictor()
