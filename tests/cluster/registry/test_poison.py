"""The poison stream through the real line: every minute 54 events that keep all rules, two thirds of them false."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from levada.line import install
from levada.line.airflow import Airflow
from levada.line.demo import read_rows
from levada.line.registry import model_versions
from tests.cluster.conftest import wait_for

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

MINUTES = [int(text) for text in os.environ.get("LEVADA_POISON_MINUTES", "1 2 5 30 60 600").split()]
NAME = "garden"
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
FALSE = {"versicolor": (15.0, 5.0, 20.0, 7.5), "virginica": (29.7, 9.9, 39.9, 14.9)}
_BATCH = 5_400

Row = Mapping[str, Any]


def minute(true: list[Row]) -> list[Row]:
    """What comes in one minute, of which 18 are true."""
    false = [{**dict(zip(FEATURES, values, strict=True)), "species": kind} for kind, values in FALSE.items()]
    return [row for row in true if row["species"] == "setosa"][:18] + [row for row in false for _ in range(18)]


def post(line: Line, rows: Iterable[Row]) -> None:
    """Have events acknowledged, and wait until the lake has them."""
    lines = [json.dumps(row) for row in rows]
    wanted = line.rows(NAME) + len(lines)
    for begin in range(0, len(lines), _BATCH):
        headers = {"Authorization": f"Bearer {line.api_key}", "Content-Type": "application/x-ndjson",
                   "Idempotency-Key": uuid.uuid4().hex}  # fmt: skip
        body = "\n".join(lines[begin : begin + _BATCH])
        answer = httpx.post(f"{line.collector_url}/v1/{NAME}/events", content=body, headers=headers, timeout=60)
        assert answer.status_code == 202, answer.text[:500]
    wait_for(lambda: line.rows(NAME) == wanted, 120)


def train(line: Line) -> dict[str, Any]:
    """The gate's outcome of one run of the training DAG."""
    airflow, dag = Airflow(line.target), f"{NAME}-train"
    run = airflow.trigger(dag)
    wait_for(lambda: airflow.state(dag, run) in ("success", "failed"), 300)
    assert airflow.state(dag, run) == "success", airflow.failure(dag, run)
    (version,) = [one for one in model_versions(line.target, NAME) if one["tags"].get("levada.run") == run]
    outcome: dict[str, Any] = json.loads(version["tags"]["levada.gate"])
    return outcome


def accuracy(line: Line, champion: str, true: list[Row]) -> float:
    """Of what serves, on rows that are known to be true."""
    url = line.predictor_url(NAME)
    wait_for(lambda: str(httpx.get(f"{url}/version", timeout=10).json()["version"]) == champion, 60)
    asked = {"instances": [{name: row[name] for name in FEATURES} for row in true]}
    headers = {"Authorization": f"Bearer {line.api_key}"}
    answer = httpx.post(f"{url}/predict", json=asked, headers=headers, timeout=30).raise_for_status().json()
    said = [prediction["label"] for prediction in answer["predictions"]]
    return sum(one == row["species"] for one, row in zip(said, true, strict=True)) / len(true)


@pytest.mark.row(44)
def test_poison_is_alarmed_and_never_serves(line: Line, tmp_path: Path) -> None:
    shipped = yaml.safe_load((install.ROOT / "values" / "local.yaml").read_text())["global"]["pipelines"]["iris"]
    line.install(install.write_values(tmp_path / "garden.yaml", {"global": {"pipelines": {NAME: shipped}}}))
    try:
        collects = {"Authorization": f"Bearer {line.api_key}"}
        url = f"{line.collector_url}/v1/{NAME}/openapi.json"
        wait_for(lambda: httpx.get(url, headers=collects, timeout=10).status_code == 200, 180)
        true = read_rows(install.ROOT / "examples" / "iris" / "iris.csv", line.target.pipeline(NAME))
        post(line, true)
        first = train(line)
        assert first["outcome"] == "promoted"
        print(f"minute 0: promoted, accuracy on the true irises {accuracy(line, first['champion'], true):.3f}")
        passed = 0
        for now in MINUTES:
            post(line, minute(true) * (now - passed))
            passed = now
            began = time.monotonic()
            outcome = train(line)
            served = accuracy(line, outcome["champion"], true)
            print(
                f"minute {now}: {outcome['outcome']} after {time.monotonic() - began:.0f} s, {outcome['reason']}; "
                f"accuracy on the true irises {served:.3f}"
            )
            assert outcome["outcome"] in ("needs approval", "refused")
            assert now > 2 or "alarm: " in outcome["reason"]
            assert outcome["champion"] == first["champion"]
            assert served >= 0.95
    finally:
        line.install()
