"""Airflow plugin: ``GET /levada/metrics`` on the api-server answers Prometheus.

Airflow itself only pushes metrics, to StatsD or OTLP. Scraped, it needs neither a receiver nor a program between,
and is measured like everything else. What is told comes from Airflow's database, where the state of all its
processes is; each query is bounded by an index, so that a scrape costs milliseconds however old the database gets.

The endpoint asks for no login: it holds counts, times and the names of DAGs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from levada.batch.exposition import Reading

# Every process of Airflow and every task loads all plugins; the rest is imported where it is used, by the api-server.

_JOB_TYPES: Final = ("SchedulerJob", "DagProcessorJob")


class LevadaMetrics(AirflowPlugin):  # type: ignore[misc]  # Airflow is not where the types are checked
    """Adds the endpoint to the api-server."""

    name = "levada-metrics"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """The application and where it is mounted."""
        from levada.batch.exposition import application

        return [{"name": "levada", "url_prefix": "/levada", "app": application(read)}]


def read() -> Reading:
    """Read Airflow's state from its database."""
    from airflow.jobs.job import Job
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.models.errors import ParseImportError
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState, State, TaskInstanceState
    from sqlalchemy import and_, func, select
    from sqlalchemy.orm import aliased

    from levada.batch.exposition import RECENT, Reading, Success

    now = datetime.now(UTC)
    recent = DagRun.run_after >= now - RECENT
    run = aliased(DagRun)

    def last(*states: DagRunState) -> Any:
        return (
            select(run.id)
            .where(run.dag_id == DagModel.dag_id, run.state.in_(states))
            .order_by(run.run_after.desc())
            .limit(1)
            .scalar_subquery()
        )

    with create_session(scoped=False) as session:
        dags = session.scalars(select(DagModel.dag_id).where(~DagModel.is_stale)).all()
        runs = session.execute(
            select(DagRun.dag_id, DagRun.state, func.count()).where(recent).group_by(DagRun.dag_id, DagRun.state)
        ).all()
        unfinished = session.execute(
            select(TaskInstance.state, func.count())
            .where(TaskInstance.state.in_(State.unfinished - {None}))
            .group_by(TaskInstance.state)
        ).all()
        finished = session.execute(
            select(TaskInstance.state, func.count())
            .join(DagRun, and_(TaskInstance.dag_id == DagRun.dag_id, TaskInstance.run_id == DagRun.run_id))
            .where(recent, TaskInstance.state.in_(State.finished))
            .group_by(TaskInstance.state)
        ).all()
        heartbeats = session.execute(
            select(Job.job_type, func.max(Job.latest_heartbeat))
            .where(Job.job_type.in_(_JOB_TYPES))
            .group_by(Job.job_type)
        ).all()
        import_errors = session.scalar(select(func.count(ParseImportError.id)))
        ended = session.execute(
            select(DagRun.dag_id, DagRun.state)
            .join(DagModel, DagRun.id == last(DagRunState.SUCCESS, DagRunState.FAILED))
            .where(~DagModel.is_stale)
        ).all()
        successes = session.execute(
            select(DagRun.dag_id, DagRun.start_date, DagRun.end_date)
            .join(DagModel, DagRun.id == last(DagRunState.SUCCESS))
            .where(~DagModel.is_stale)
        ).all()
    return Reading(
        at=now,
        dag_runs={(dag_id, state.value): 0 for dag_id in dags for state in DagRunState}
        | {(dag_id, str(state)): count for dag_id, state, count in runs},
        task_instances={state.value: 0 for state in TaskInstanceState}
        | {str(state): count for state, count in [*unfinished, *finished]},
        heartbeats={job_type: beat for job_type, beat in heartbeats if beat},
        import_errors=import_errors,
        failed={dag_id: state == DagRunState.FAILED for dag_id, state in ended},
        successes={dag_id: Success(started, ended) for dag_id, started, ended in successes if started and ended},
    )
