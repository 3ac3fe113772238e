"""Pods are killed one by one; the line comes back and the demo ends well."""

from __future__ import annotations

import threading
import time

import pytest

from .conftest import Line, wait_for

STATELESS = ("collector", "sink", "airflow-api", "airflow-scheduler", "airflow-dag-processor", "mlflow", "predictor")
STATEFUL = ("kafka", "postgres", "s3", "prometheus")


def kill(line: Line, component: str) -> None:
    line.kubectl(
        "delete", "pod", "--grace-period=0", "--force", "--wait=false",
        "-l", f"app.kubernetes.io/instance=levada,app.kubernetes.io/component={component}",
    )  # fmt: skip


def test_every_stateless_pod_is_killed_while_the_demo_runs(line: Line) -> None:
    killed = []

    def killer() -> None:
        for component in STATELESS:
            kill(line, component)
            killed.append(component)
            time.sleep(6)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        report = line.demo()
    finally:
        thread.join()
    assert report.version == report.outcome["champion"]
    assert killed == list(STATELESS)
    line.wait_until_ready(180)


@pytest.mark.parametrize("component", STATEFUL)
def test_stateful_pod_is_back_with_its_data(line: Line, component: str) -> None:
    pod = f"levada-{component}-0"
    before = line.kubectl("get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
    kill(line, component)

    def back() -> bool:
        uid, ready = line.kubectl(
            "get", "pod", pod, "-o", 'jsonpath={.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}'
        ).split()
        return uid != before and ready == "True"

    assert wait_for(back, 120) <= 120
    line.wait_until_ready(180)


def test_demo_after_all_that(line: Line) -> None:
    before = line.rows("iris")
    report = line.demo()
    assert report.version == report.outcome["champion"]
    assert line.rows("iris") == before


def test_kafka_down_is_503_within_two_seconds_and_comes_back(line: Line) -> None:
    row = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2, "species": "setosa"}
    headers = {"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": "kafka-down"}
    before = line.rows("iris")
    line.kubectl("scale", "statefulset/levada-kafka", "--replicas=0")
    try:
        line.kubectl("wait", "--for=delete", "pod/levada-kafka-0", "--timeout=120s", timeout=130)
        for _ in range(20):
            started = time.monotonic()
            answer = line.post("iris", json=row, headers=headers)
            assert answer.status_code == 503, answer.text
            assert time.monotonic() - started < 2.5  # the promise is 2 s; the forwarder and this test take some too
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["event_id"] == "kafka-down"
    finally:
        line.kubectl("scale", "statefulset/levada-kafka", "--replicas=1")
    line.wait_until_ready(120)
    wait_for(lambda: line.post("iris", json=row, headers=headers).status_code == 202, 60)
    # However many of those attempts landed after all, they are one event.
    wait_for(lambda: line.rows("iris") == before + 1, 60)
