"""Airflow's state, from its database through the api-server's plugin into Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from tests.cluster.conftest import wait_for

if TYPE_CHECKING:
    from tests.cluster.conftest import Line


def query(line: Line, expression: str) -> list[dict[str, Any]]:
    url = line.target.url(line.target.name("prometheus"), 9090)
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=10).raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def test_prometheus_knows_when_each_process_of_airflow_was_last_alive(line: Line) -> None:
    def alive() -> bool:
        found = query(line, "min by (job_type) (levada_airflow_heartbeat_age_seconds) < 60")
        return {each["metric"]["job_type"] for each in found} == {"SchedulerJob", "DagProcessorJob"}

    wait_for(alive, 90)


def test_prometheus_counts_the_runs_of_every_pipeline(line: Line) -> None:
    models = [name for name, pipeline in line.target.pipelines().items() if pipeline.model is not None]
    dags = {f"{name}-{action}" for name in models for action in ("train", "watch", "approve", "rollback")}

    def counted() -> bool:
        return {each["metric"]["dag_id"] for each in query(line, "levada_airflow_dag_runs")} == dags

    wait_for(counted, 90)
    assert {each["metric"]["state"] for each in query(line, "levada_airflow_dag_runs")} == {
        "queued",
        "running",
        "success",
        "failed",
    }
