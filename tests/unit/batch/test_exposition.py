from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from levada.batch.exposition import Reading, Success, application

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
READING = Reading(
    at=NOW,
    dag_runs={("plants-train", "success"): 3, ("plants-train", "failed"): 0},
    task_instances={"running": 1, "failed": 0},
    heartbeats={"SchedulerJob": NOW - timedelta(seconds=7)},
    import_errors=2,
    failed={"plants-train": False, "iris-train": True},
    successes={"plants-train": Success(NOW - timedelta(minutes=5), NOW - timedelta(minutes=2))},
)


def get(told: FastAPI) -> httpx.Response:
    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(told, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
            return await client.get("/metrics")

    return asyncio.run(request())


def scrape(told: FastAPI) -> dict[tuple[str, ...], float]:
    response = get(told)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {(sample.name, *sample.labels.values()): sample.value for each in families for sample in each.samples}


def test_a_reading_is_told_whole() -> None:
    assert scrape(application(lambda: READING)) == {
        ("levada_airflow_dag_runs", "plants-train", "success"): 3,
        ("levada_airflow_dag_runs", "plants-train", "failed"): 0,
        ("levada_airflow_task_instances", "running"): 1,
        ("levada_airflow_task_instances", "failed"): 0,
        ("levada_airflow_heartbeat_age_seconds", "SchedulerJob"): 7,
        ("levada_airflow_import_errors",): 2,
        ("levada_airflow_last_run_failed", "plants-train"): 0,
        ("levada_airflow_last_run_failed", "iris-train"): 1,
        ("levada_airflow_last_success_timestamp_seconds", "plants-train"): NOW.timestamp() - 120,
        ("levada_airflow_last_success_duration_seconds", "plants-train"): 180,
    }


def test_before_anything_has_run_there_is_no_time_of_it() -> None:
    empty = Reading(at=NOW, dag_runs={}, task_instances={}, heartbeats={}, import_errors=0, failed={}, successes={})
    assert scrape(application(lambda: empty)) == {("levada_airflow_import_errors",): 0}


def test_each_scrape_reads_anew() -> None:
    errors = iter((2, 0))
    told = application(lambda: replace(READING, import_errors=next(errors)))
    assert [scrape(told)[("levada_airflow_import_errors",)] for _ in range(2)] == [2, 0]


def test_a_database_that_is_away_is_a_failed_scrape_and_not_zeros() -> None:
    def read() -> Reading:
        raise ConnectionError

    assert get(application(read)).status_code == 500
