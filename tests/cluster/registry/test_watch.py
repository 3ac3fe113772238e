"""The loop: what a predictor says lands in the lake, meets its labels there, and is looked at."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from levada.line import install
from levada.line.airflow import Airflow
from levada.line.demo import lake_state, read_rows
from levada.line.install import write_values
from levada.line.model import read, render
from tests.cluster.conftest import wait_for

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

RETRAIN = {"global": {"pipelines": {"iris": {"model": {"watch": {"retrain": True, "window": 150}}}}}}
SHOWN_WITHIN = 30.0


def flowers(line: Line) -> list[dict[str, Any]]:
    return read_rows(install.ROOT / "examples" / "iris" / "iris.csv", line.target.pipeline("iris"))


def predict(line: Line, rows: list[dict[str, Any]], key: str) -> list[str]:
    """What the predictor says to rows, under event ids made of a key."""
    instances = [{name: value for name, value in row.items() if name != "species"} for row in rows]
    headers = {"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": key}
    url = f"{line.predictor_url('iris')}/predict"
    answer = httpx.post(url, json={"instances": instances}, headers=headers, timeout=30).raise_for_status()
    assert answer.headers["levada-event-id"] == key
    return [prediction["label"] for prediction in answer.json()["predictions"]]


def label(line: Line, rows: list[dict[str, Any]], key: str) -> None:
    """Post the rows with their labels under the ids of their predictions."""
    headers = {
        "Authorization": f"Bearer {line.api_key}", "Content-Type": "application/x-ndjson", "Idempotency-Key": key
    }  # fmt: skip
    answer = line.post("iris", content="\n".join(map(json.dumps, rows)), headers=headers)
    assert (answer.status_code, answer.json()["acknowledged"]) == (202, len(rows))


def rows_of(line: Line, stream: str) -> int:
    return lake_state(line.target, stream)[1]


def look(line: Line) -> None:
    """Run the DAG that watches, to its good end."""
    airflow = Airflow(line.target)
    run = airflow.trigger("iris-watch")
    wait_for(lambda: airflow.state("iris-watch", run) in ("success", "failed"), 300)
    assert airflow.state("iris-watch", run) == "success", airflow.failure("iris-watch", run)


def shown(line: Line, metric: str) -> float | None:
    """A metric of the predictor about the champion."""
    text = httpx.get(f"{line.predictor_url('iris')}/metrics", timeout=30).raise_for_status().text
    found = re.search(rf"^levada_model_{metric} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


@pytest.mark.row(55, part="drift and quality of a model")
def test_predictions_meet_their_labels_in_the_lake_and_show_the_quality(line: Line) -> None:
    champion = line.demo().outcome["champion"]
    rows, key = flowers(line), f"watch-{uuid.uuid4().hex[:12]}"
    wait_for(lambda: rows_of(line, "iris.predictions") > 0, 60)  # the demo's
    time.sleep(10)  # all of them
    predictions, events = rows_of(line, "iris.predictions"), rows_of(line, "iris")
    predict(line, rows, key)
    predict(line, rows, key)  # the same again is kept once
    label(line, rows, key)
    wait_for(lambda: rows_of(line, "iris.predictions") >= predictions + 150, 60)
    wait_for(lambda: rows_of(line, "iris") == events + 150, 60)
    time.sleep(10)
    assert rows_of(line, "iris.predictions") == predictions + 150
    look(line)
    of = f'name="iris",version="{champion}"'
    wait_for(lambda: (shown(line, f"watch_labelled_rows{{{of}}}") or 0) >= 150, SHOWN_WITHIN)
    assert (shown(line, f'quality{{metric="accuracy",{of}}}') or 0) > 0.9
    assert shown(line, f"watch_alarms{{{of}}}") == 0
    assert shown(line, f'drift_psi{{field="petal_width",{of}}}') is not None
    screen = render(read(line.target, "iris"))
    print(screen)
    assert f"version {champion}, promoted" in screen
    assert re.search(r"QUALITY +accuracy 0\.9\d+ live", screen)
    assert max(map(len, screen.splitlines())) <= 80


@pytest.fixture
def retraining(line: Line, tmp_path: Path) -> Iterator[None]:
    """An alarm of iris starts a training, while this is used."""
    line.install(write_values(tmp_path / "retrain.yaml", RETRAIN))
    airflow = Airflow(line.target)

    def tasks() -> set[str]:
        return {task["task_id"] for task in airflow._call("GET", "iris-watch/tasks")["tasks"]}

    wait_for(lambda: tasks() == {"watch", "retrain"}, 300)  # the file reaches the pods, then it is parsed
    yield
    line.install()


def test_other_flowers_raise_the_alarm_and_start_a_training(line: Line, retraining: None) -> None:
    # No training before: its version could wait for a person, and then none is started.
    champion = httpx.get(f"{line.predictor_url('iris')}/version", timeout=30).raise_for_status().json()["version"]
    airflow = Airflow(line.target)

    def trainings() -> dict[str, str]:
        runs = airflow._call("GET", "iris-train/dagRuns?limit=100")["dag_runs"]
        return {run["dag_run_id"]: run["state"] for run in runs}

    # The same flowers: no alarm, no training.
    predictions = rows_of(line, "iris.predictions")
    predict(line, flowers(line), f"same-{uuid.uuid4().hex[:12]}")
    wait_for(lambda: rows_of(line, "iris.predictions") >= predictions + 150, 60)
    before = trainings()
    look(line)
    assert trainings().keys() == before.keys()

    predictions = rows_of(line, "iris.predictions")
    moved = [{**row, "petal_length": row["petal_length"] + 3} for row in flowers(line)]
    predict(line, moved, f"moved-{uuid.uuid4().hex[:12]}")
    wait_for(lambda: rows_of(line, "iris.predictions") >= predictions + 150, 60)
    look(line)
    of = f'name="iris",version="{champion}"'
    wait_for(lambda: (shown(line, f"watch_alarms{{{of}}}") or 0) > 0, SHOWN_WITHIN)
    assert (shown(line, f'drift_psi{{field="petal_length",{of}}}') or 0) > 0.2
    assert "ALARM" in render(read(line.target, "iris"))
    wait_for(lambda: len(trainings()) == len(before) + 1, 60)
    (run,) = trainings().keys() - before.keys()
    wait_for(lambda: trainings()[run] in ("success", "failed"), 300)
    assert trainings()[run] == "success", airflow.failure("iris-train", run)
