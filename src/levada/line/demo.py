"""Send rows through the whole line and assert that the right model answers.

Every hop is timed and leaves one line. The hops use what users use: the collector's HTTP, Airflow's REST API,
MLflow's REST API and the predictor's HTTP. Running it again is safe: a row keeps its event id, so it is in the lake
once, and a model that is no better than the champion is not promoted.
"""

from __future__ import annotations

import csv
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from levada.line.airflow import Airflow
from levada.line.registry import model_versions
from levada.line.target import Endpoint, LineError, Target
from levada.pipeline import Pipeline

Row = dict[str, Any]
_EVENT_IDS: Final = uuid.UUID("6f0c5f0a-5d5c-4a63-9d0a-1f5b5f7f9f11")
"""Namespace of the demo's event ids: pipeline and row number give the same id on every run."""
_FINAL_STATES: Final = ("success", "failed")


class HopError(LineError):
    """A hop of the line that failed: which, in which pod, and what that pod said last."""


@dataclass
class Hop:
    """One timed step of the demo."""

    name: str
    seconds: float
    detail: str


@dataclass
class Report:
    """What the demo saw."""

    pipeline: str
    hops: list[Hop] = field(default_factory=list)
    version: str = ""
    """Model version that answered."""
    outcome: dict[str, Any] = field(default_factory=dict)
    """The gate's recorded outcome for the run that the demo triggered."""
    correct: int = 0
    """Predictions that equal the label of their row."""
    rows: int = 0
    sample: str = ""
    """One request and its answer, for a person to see."""

    @property
    def seconds(self) -> float:
        """Time from the first event to the last prediction."""
        return sum(hop.seconds for hop in self.hops)


def read_rows(path: Path, pipeline: Pipeline) -> list[Row]:
    """Rows of a CSV file with a header, each value in its field's declared type; an empty cell is left out.

    Raises:
        LineError: a column that is not declared or a value that is not of its type, with the line.
    """
    convert: dict[str, Callable[[str], Any]] = {
        "string": str,
        "timestamp": str,
        "long": int,
        "double": float,
        "boolean": lambda text: {"true": True, "false": False}[text.lower()],
    }
    rows = []
    with path.open(newline="") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            row = {}
            for name, text in line.items():
                if name not in pipeline.fields:
                    raise LineError(f"{path}: column {name!r} is not a field of pipeline {pipeline.name}")
                try:
                    if text:
                        row[name] = convert[pipeline.fields[name].type](text)
                except (ValueError, KeyError) as error:
                    kind = pipeline.fields[name].type
                    raise LineError(f"{path}, line {number}: {name} is {text!r}, not a {kind}") from error
            rows.append(row)
    if not rows:
        raise LineError(f"{path} holds no rows")
    return rows


class Demo:
    """One run of the demo for one pipeline."""

    def __init__(self, target: Target, pipeline: Pipeline, rows: Sequence[Row], say: Callable[[str], None]) -> None:
        if pipeline.model is None or not (pipeline.model.enabled and pipeline.serving.enabled):
            raise LineError(f"pipeline {pipeline.name} has no model that serves: the demo ends in a prediction")
        self._target, self._pipeline, self._rows, self._say = target, pipeline, rows, say
        self._label = pipeline.model.label
        self.report = Report(pipeline.name, rows=len(rows))

    def run(self) -> Report:
        """All hops, in order.

        Raises:
            HopError: naming the hop, the pod and its last error line.
        """
        with self._hop("collector", "collector") as done:
            ends = self._send()
            done(f"{len(self._rows)} events acknowledged by Kafka")
        with self._hop("lake", f"sink-{self._pipeline.name}") as done:
            rows = self._wait_for_lake(ends)
            done(f"every acknowledged event is committed; the table holds {rows} rows")
        with self._hop("train and gate", "airflow-scheduler") as done:
            run = self._train()
            done(f"DAG run {run} succeeded")
        with self._hop("registry", "mlflow") as done:
            outcome = self.report.outcome = self._outcome(run)
            done(
                f"version {outcome['version']} {outcome['outcome']}, {outcome['metric']} {outcome['value']:.3f}; "
                f"champion is {outcome['champion']}"
            )
        with self._hop("predictor", f"predictor-{self._pipeline.name}") as done:
            self._predict(str(self.report.outcome["champion"]))
            done(f"{len(self._rows)} predictions by version {self.report.version}, {self.report.correct} as labelled")
        return self.report

    @contextmanager
    def _hop(self, name: str, component: str) -> Iterator[Callable[[str], None]]:
        started = time.monotonic()
        detail = ""

        def done(text: str) -> None:
            nonlocal detail
            detail = text

        try:
            yield done
        except (LineError, httpx.HTTPError, KeyError, ValueError) as error:
            raise HopError(f"hop {name!r} failed: {error}\n{last_words(self._target, component)}") from error
        hop = Hop(name, time.monotonic() - started, detail)
        self.report.hops.append(hop)
        self._say(f"{hop.seconds:7.1f} s  {hop.name:<15} {hop.detail}")

    def _send(self) -> dict[int, int]:
        """Post every row; partition → offset after the last acknowledged event."""
        collector = self._target.endpoint("collector", 8080)
        key = self._target.secret("api-key", "key")
        ends: dict[int, int] = {}
        for number, row in enumerate(self._rows):
            event_id = str(uuid.uuid5(_EVENT_IDS, f"{self._pipeline.name}/{number}"))
            answer = collector.request(
                "POST", f"/v1/{self._pipeline.name}/events", json=row,
                headers={"Authorization": f"Bearer {key}", "Idempotency-Key": event_id},
                # 404: a pipeline that was declared a moment ago; its file reaches the collector within two minutes.
                retry_statuses=(404, 502, 503), retry_for=150,
            )  # fmt: skip
            if answer.status_code != 202:
                raise LineError(f"row {number + 1} was answered {answer.status_code}: {answer.text[:500]}")
            receipt = answer.json()
            if receipt["offset"] is not None:
                ends[receipt["partition"]] = max(ends.get(receipt["partition"], 0), receipt["offset"] + 1)
        return ends

    def _wait_for_lake(self, ends: dict[int, int], timeout: float = 120) -> int:
        """Wait until the sink's committed offsets have passed ``ends``; rows in the table then."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                committed, rows = lake_state(self._target, self._pipeline.name)
            except LineError:  # the sink is being replaced
                committed, rows = {}, 0
            behind = {p: end for p, end in ends.items() if committed.get(p, 0) < end}
            if not behind:
                return rows
            if time.monotonic() > deadline:
                raise LineError(f"not committed within {timeout:g} s: partition → offset {behind}, found {committed}")
            time.sleep(0.5)

    def _train(self, timeout: float = 600) -> str:
        airflow = Airflow(self._target)
        dag = f"{self._pipeline.name}-train"
        run = airflow.trigger(dag)
        deadline = time.monotonic() + timeout
        while (state := airflow.state(dag, run)) not in _FINAL_STATES:
            if time.monotonic() > deadline:
                raise LineError(f"DAG {dag}, run {run} is still {state} after {timeout:g} s")
            time.sleep(1)
        if state != "success":
            raise LineError(f"DAG {dag}, run {run} {state}: {airflow.failure(dag, run)}")
        return run

    def _outcome(self, run: str) -> dict[str, Any]:
        for version in model_versions(self._target, self._pipeline.name):
            if version["tags"].get("levada.run") == run:
                outcome: dict[str, Any] = json.loads(version["tags"]["levada.gate"])
                return outcome
        raise LineError(
            f"run {run} registered no version of model {self._pipeline.name}: too few rows to train on, "
            "as the log of its task `train` says"
        )

    def _predict(self, champion: str, timeout: float = 90) -> None:
        predictor = self._target.endpoint(f"predictor-{self._pipeline.name}", 8080)
        deadline = time.monotonic() + timeout
        while (serving := _version(predictor)) != champion:
            if time.monotonic() > deadline:
                raise LineError(f"the gate named version {champion}, the predictor still serves {serving or 'none'}")
            time.sleep(0.5)
        instances = [{name: row.get(name) for name in self._pipeline.features} for row in self._rows]
        key = {"Authorization": f"Bearer {self._target.secret('api-key', 'key')}"}
        answer = predictor.request("POST", "/predict", json={"instances": instances}, headers=key)
        if answer.status_code != 200:
            raise LineError(f"the predictor answered {answer.status_code}: {answer.text[:500]}")
        body = answer.json()
        self.report.version = body["model"]["version"]
        if self.report.version != champion:
            raise LineError(f"version {self.report.version} answered, the gate's outcome names {champion}")
        labels = [prediction.get("label", prediction.get("value")) for prediction in body["predictions"]]
        self.report.correct = sum(label == row[self._label] for label, row in zip(labels, self._rows, strict=True))
        self.report.sample = f"{json.dumps(instances[0])} → {labels[0]}"


def _version(predictor: Endpoint) -> str:
    answer = predictor.request("GET", "/version", retry_statuses=(502,))
    return str(answer.json()["version"]) if answer.is_success else ""


def lake_state(target: Target, stream: str) -> tuple[dict[int, int], int]:
    """Committed offset by partition and rows in the table, as the sinks of a pipeline tell.

    The stream is the pipeline's events, by its name, or ``<pipeline>.predictions``.
    """
    pipeline = stream.partition(".")[0]
    pods = target.objects("pods", f"app.kubernetes.io/component=sink,levada.io/pipeline={pipeline}")
    committed: dict[int, int] = {}
    rows = 0
    for pod in pods:
        if pod["status"]["phase"] != "Running" or "deletionTimestamp" in pod["metadata"]:
            continue
        for family in text_string_to_metric_families(target.pod_metrics(pod["metadata"]["name"])):
            for sample in family.samples:
                if sample.labels.get("pipeline") != stream:
                    continue
                if sample.name == "levada_sink_committed_offset":
                    committed[int(sample.labels["partition"])] = int(sample.value)
                elif sample.name == "levada_lake_rows":
                    rows = max(rows, int(sample.value))  # each sink tells of the table at its own last commit
    return committed, rows


def last_words(target: Target, component: str) -> str:
    """The pod of a component and its last error line (or last line) of log."""
    workload = (
        component.removesuffix(f"-{component.split('-')[-1]}")
        if component.startswith(("sink-", "predictor-"))
        else component
    )
    try:
        pods = target.objects("pods", f"app.kubernetes.io/component={workload}")
        names = [pod["metadata"]["name"] for pod in pods if component in pod["metadata"]["name"]]
        if not names:
            return f"no pod of {component} is there: run `levada status`"
        lines = target.kubectl("logs", names[-1], "--all-containers", "--tail=200").strip().splitlines()
    except LineError as error:
        return str(error)
    errors = [line for line in lines if '"error"' in line or "ERROR" in line or "Error" in line]
    return f"pod {names[-1]}: {(errors or lines or ['(no log)'])[-1]}"
