"""The alert rules of the chart, evaluated by Prometheus' own tool on what our processes export."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families

from levada.batch.exposition import Reading, exposition
from levada.cluster import packages
from levada.cluster.errors import ClusterError
from levada.serving.champion import WAITING
from levada.serving.quality import ALARMS
from levada.stream.metrics import FENCED, NEEDS_OPERATOR
from tests.environments import CACHE

RULES = Path(__file__).parents[3] / "charts" / "levada" / "charts" / "observability" / "files" / "alerts.yml"
START = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def promtool() -> str:
    """The program, from Debian's package and not installed: that would start a Prometheus."""
    if (found := shutil.which("promtool")) is not None:
        return found
    folder = CACHE / "prometheus"
    program = folder / "usr" / "bin" / "promtool"
    if not program.exists():
        try:
            packages.unpack("prometheus", folder)
            if not program.exists():  # a package of its own since Debian 13
                packages.unpack("promtool", folder)
        except ClusterError as error:
            pytest.skip(f"no promtool: {error}")
    return str(program)


def series(readings: list[Reading]) -> list[dict[str, str]]:
    """What two api-servers export of the readings, one a minute, as promtool takes it."""
    found: dict[str, list[str]] = {}
    for minute, reading in enumerate(readings):
        for family in text_string_to_metric_families(exposition(reading).decode()):
            for sample in family.samples:
                for pod in ("a", "b"):
                    labels = ",".join(f'{name}="{value}"' for name, value in {**sample.labels, "pod": pod}.items())
                    values = found.setdefault(f"{sample.name}{{{labels}}}", ["_"] * len(readings))
                    values[minute] = f"{sample.value:g}"
    return [{"series": name, "values": " ".join(values)} for name, values in found.items()]


@pytest.mark.row(49, part="and alerts")
def test_a_failed_training_is_an_alert_until_one_succeeds(promtool: str, tmp_path: Path) -> None:
    minutes = [{}, {"iris-train": False}, {"iris-train": True}, {"iris-train": True}, {"iris-train": False}]
    other = {"plants-train": False, "iris-approve": True}  # a person who approves sees it
    nothing = Reading(START, dag_runs={}, task_instances={}, heartbeats={}, import_errors=0, failed={}, successes={})
    readings = [replace(nothing, failed=other | each) for each in minutes]
    alert = {
        "exp_labels": {"severity": "warning", "dag_id": "iris-train"},
        "exp_annotations": {"summary": "The last run of iris-train failed; its log is in Airflow."},
    }
    asked = [
        {"eval_time": f"{at}m", "alertname": "TrainingFailed", "exp_alerts": [alert] if each.get("iris-train") else []}
        for at, each in enumerate(minutes)
    ]
    judge(promtool, tmp_path, series(readings), asked)


def judge(promtool: str, tmp_path: Path, given: list[dict[str, str]], asked: list[dict[str, Any]]) -> None:
    """Let Prometheus' tool say whether the rules give these alerts."""
    tests = [{"interval": "1m", "input_series": given, "alert_rule_test": asked}]
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("alert", "metric", "labels", "summary"),
    [
        (
            "ModelWaits", WAITING, {"name": "iris"},
            "A version of iris waits for an approval; its report lies beside it in MLflow.",
        ),
        (
            "ModelWatched", ALARMS, {"name": "iris", "version": "3"},
            "Version 3 of iris is asked or errs otherwise than in training.",
        ),
        (
            "SinkNeedsOperator", NEEDS_OPERATOR, {"pipeline": "iris", "state": "topic-replaced"},
            "The sink of iris stands still, topic-replaced; its log says what to decide.",
        ),
    ],
)  # fmt: skip
def test_what_a_person_must_look_at_is_an_alert(
    promtool: str, tmp_path: Path, alert: str, metric: Gauge, labels: dict[str, str], summary: str
) -> None:
    (described,) = metric.describe()
    named = ",".join(f'{name}="{value}"' for name, value in labels.items())
    given = [
        {"series": f'{described.name}{{{named},pod="{pod}"}}', "values": values}
        for pod, values in (("a", "0 2 0"), ("b", "0 1 0"))
    ]
    severity = "critical" if metric is NEEDS_OPERATOR else "warning"
    fired = {"exp_labels": {"severity": severity, **labels}, "exp_annotations": {"summary": summary}}
    asked = [
        {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": [fired] if minute == 1 else []}
        for minute in range(3)
    ]
    judge(promtool, tmp_path, given, asked)


def test_a_fenced_sink_is_an_alert_though_its_process_ends(promtool: str, tmp_path: Path) -> None:
    (described,) = FENCED.describe()
    name = f'{described.name}_total{{pipeline="iris",pod="%s"}}'
    given = [
        {"series": name % "loser", "values": "0 0 1 0 0" + " 0" * 20},  # seen once, then it started again
        {"series": name % "winner", "values": "0" + " 0" * 24},
    ]
    fired = {
        "exp_labels": {"severity": "critical", "pipeline": "iris"},
        "exp_annotations": {"summary": "A sink of iris lost a partition to another; two may be set up for one."},
    }
    asked = [
        {"eval_time": f"{minute}m", "alertname": "SinkFenced", "exp_alerts": [fired] if 2 <= minute <= 15 else []}
        for minute in (0, 1, 2, 10, 24)
    ]
    judge(promtool, tmp_path, given, asked)
