"""What Prometheus reads about Airflow, as text; knows nothing of Airflow's database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

RECENT: Final = timedelta(days=1)
"""What is finished is counted this long, so that counting stays cheap however old the database gets."""


@dataclass(frozen=True)
class Success:
    """The last run of a DAG that succeeded."""

    started: datetime
    ended: datetime


@dataclass(frozen=True)
class Reading:
    """Airflow's state at one moment. A count of 0 is written down, not left out: alerts need to see it rise."""

    at: datetime
    dag_runs: Mapping[tuple[str, str], int]
    """Runs of the last day by DAG and state."""
    task_instances: Mapping[str, int]
    """Tasks by state: all between scheduled and finished, and the finished ones of the runs of the last day."""
    heartbeats: Mapping[str, datetime]
    """Latest sign of life by job type."""
    import_errors: int
    """DAG files that cannot be read."""
    failed: Mapping[str, bool]
    """Whether the last run that ended failed, by DAG."""
    successes: Mapping[str, Success]
    """Last successful run by DAG."""


def exposition(reading: Reading) -> bytes:
    """The reading in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Families(reading))
    return generate_latest(registry)


def application(read: Callable[[], Reading]) -> FastAPI:
    """The application that answers ``/metrics`` with what ``read`` finds."""
    app = FastAPI(title="Metrics of Airflow", openapi_url=None)

    # Not async: reading waits for the database, and the other requests must not.
    @app.get("/metrics")
    def metrics() -> Response:
        return Response(exposition(read()), media_type=CONTENT_TYPE_LATEST)

    return app


class _Families(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[GaugeMetricFamily]:
        reading, successes = self._reading, self._reading.successes.items()
        yield _gauge(
            "dag_runs",
            "Runs due in the last day.",
            ("dag_id", "state"),
            reading.dag_runs.items(),
        )
        yield _gauge(
            "task_instances",
            "Tasks between scheduled and finished, and the finished ones of runs due in the last day.",
            ("state",),
            (((state,), count) for state, count in reading.task_instances.items()),
        )
        yield _gauge(
            "heartbeat_age_seconds",
            "Time since the latest heartbeat of a process of this type.",
            ("job_type",),
            (((job_type,), (reading.at - beat).total_seconds()) for job_type, beat in reading.heartbeats.items()),
        )
        yield _gauge(
            "import_errors",
            "DAG files that cannot be read.",
            (),
            [((), reading.import_errors)],
        )
        yield _gauge(
            "last_run_failed",
            "Whether the last run that ended failed: 1 until another one succeeds.",
            ("dag_id",),
            (((dag_id,), failed) for dag_id, failed in self._reading.failed.items()),
        )
        yield _gauge(
            "last_success_timestamp_seconds",
            "When the last successful run ended.",
            ("dag_id",),
            (((dag_id,), success.ended.timestamp()) for dag_id, success in successes),
        )
        yield _gauge(
            "last_success_duration_seconds",
            "How long the last successful run took.",
            ("dag_id",),
            (((dag_id,), (success.ended - success.started).total_seconds()) for dag_id, success in successes),
        )


def _gauge(
    name: str, documentation: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"levada_airflow_{name}", documentation, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
