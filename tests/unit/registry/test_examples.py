"""The data that is shipped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from levada.event import Checker
from levada.pipeline import parse_pipeline
from levada.registry.contract import Context, refuse_identifiers
from levada.registry.dataset import sides, trainable
from levada.registry.trainers import linear

from .conftest import snapshot

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_iris_is_fishers_150_rows() -> None:
    with (EXAMPLES / "iris" / "iris.csv").open() as file:
        species = [row["species"] for row in csv.DictReader(file)]
    assert {name: species.count(name) for name in set(species)} == {"setosa": 50, "versicolor": 50, "virginica": 50}


def test_every_wine_keeps_its_rules_and_the_model_learns_from_them() -> None:
    values = yaml.safe_load((EXAMPLES / "wine" / "values.yaml").read_text())
    wine = parse_pipeline(values["global"]["pipelines"]["wine"], "wine")
    checker = Checker(wine)
    with (EXAMPLES / "wine" / "wine.csv").open() as file:
        # A measurement is a JSON number, a cultivar a string.
        raw = [{k: v if k == "cultivar" else json.loads(v) for k, v in row.items()} for row in csv.DictReader(file)]
    rows = [checker.check(row) for row in raw]
    assert len(rows) == 178
    split = sides(snapshot(rows), wine)
    train, held_out = trainable(split, wine)
    refuse_identifiers(train)
    model = linear(train.to_arrow(), wine, Context(1, "a", None))
    assert float(np.mean(model.predict(pd.DataFrame(held_out.columns)) == held_out.labels)) >= 0.95
