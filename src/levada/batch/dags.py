"""Airflow DAGs, for each declared pipeline that has a model: train, watch, approve, roll back. The last two are for
people.

Airflow keeps one import error a *file*, and a file with an error loses all its DAGs. So the image has two DAG
files: ``levada.py`` calls :func:`build`, which passes over a broken declaration, and ``levada_errors.py`` calls
:func:`check`, which has no DAGs and raises for the broken ones. The error shows in Airflow's UI with the pipeline's
name while all other pipelines go on.

Parsing reads the pipelines folder and nothing else. The dag-processor parses again by itself every half minute, so
a changed declaration needs no restart.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param
from kubernetes.client import V1EnvVar

from levada.batch import SKIP_EXIT_CODE
from levada.config import settings
from levada.pipeline import Model, Pipeline, PipelineError, Watch, declared_names, load_pipeline

POD_TEMPLATES: Final = Path("/etc/levada/trainer")
"""Pods of a training and of the gate: image, resources, credentials and security come from the chart."""
_BY: Final = "--by={{ dag_run.triggering_user_name or 'unknown' }}"


def build(folder: Path | None = None) -> dict[str, DAG]:
    """The DAGs of all usable pipelines, by the name of a variable for each.

    Args:
        folder: the pipelines folder; by default the one in the settings.
    """
    return {dag.dag_id.replace("-", "_"): dag for dag in _read(folder)[0]}


def check(folder: Path | None = None) -> None:
    """Raise for the pipelines that :func:`build` passed over.

    Raises:
        PipelineError: naming each of them and what to do.
    """
    if problems := _read(folder)[1]:
        raise PipelineError("\n".join(problems))


def _read(folder: Path | None) -> tuple[list[DAG], list[str]]:
    folder = folder if folder is not None else settings().pipelines
    dags, problems = [], []
    for name in declared_names(folder):
        try:
            pipeline = load_pipeline(folder, name)
            if pipeline.enabled and pipeline.model is not None and pipeline.model.enabled:
                dags += [_training(pipeline, pipeline.model), _approval(pipeline), _way_back(pipeline)]
                if pipeline.logs and pipeline.model.watch.enabled:
                    dags.append(_watching(pipeline, pipeline.model.watch))
        except PipelineError as error:
            problems.append(str(error))
    return dags, problems


def _training(pipeline: Pipeline, model: Model) -> DAG:
    dag = _scheduled(
        pipeline, "train", model.schedule, "model.schedule",
        f"Train {pipeline.name} from the lake, judge the model, promote it if it earned that",
    )  # fmt: skip
    # A user's image trains and no more: it is not what judges.
    train = _pod(dag, pipeline, "train", ["--run", "{{ run_id }}"], timedelta(hours=2), model.image)
    train >> _pod(dag, pipeline, "promote", ["--run", "{{ run_id }}"], timedelta(minutes=15))
    return dag


def _watching(pipeline: Pipeline, watch: Watch) -> DAG:
    dag = _scheduled(
        pipeline, "watch", watch.schedule, "model.watch.schedule",
        f"Look at what the champion of {pipeline.name} is asked, and how good it is on what came true",
    )  # fmt: skip
    look = _pod(dag, pipeline, "watch", ["--retrain"] if watch.retrain else [], timedelta(minutes=15))
    if watch.retrain:
        # Skipped with the look, which ends as one that found nothing to do unless there is an alarm.
        look >> TriggerDagRunOperator(dag=dag, task_id="retrain", trigger_dag_id=f"{pipeline.name}-train")
    return dag


def _scheduled(pipeline: Pipeline, action: str, schedule: str, where: str, description: str) -> DAG:
    try:
        dag = DAG(
            dag_id=f"{pipeline.name}-{action}",
            description=description,
            schedule=None if schedule == "none" else schedule,
            catchup=False,
            max_active_runs=1,
            is_paused_upon_creation=False,
            tags=["levada"],
            default_args={
                "owner": "levada",
                "retries": 2,
                "retry_delay": timedelta(seconds=20),
                "retry_exponential_backoff": 3,
                "max_retry_delay": timedelta(minutes=10),
            },
        )
        dag.validate()
    except Exception as error:  # each kind of schedule has an exception of its own
        raise PipelineError(
            f"pipeline {pipeline.name}: {where} `{schedule}` is no schedule: {error}; "
            "write a cron expression, a preset such as @hourly, or none"
        ) from error
    return dag


def _approval(pipeline: Pipeline) -> DAG:
    run = Param(type="string", minLength=1, description="The run of the training whose version waits")
    dag = _by_hand(pipeline, "approve", "Let the version of a training serve that needs approval", run=run)
    _pod(dag, pipeline, "promote", ["--run={{ params.run }}", "--approve={{ params.why }}", _BY], timedelta(minutes=15))
    return dag


def _way_back(pipeline: Pipeline) -> DAG:
    dag = _by_hand(pipeline, "rollback", "Let the champion before the present one serve again")
    _pod(dag, pipeline, "rollback", [pipeline.name, "--why={{ params.why }}", _BY], timedelta(minutes=5))
    return dag


def _by_hand(pipeline: Pipeline, action: str, description: str, **params: Param) -> DAG:
    why = Param(type="string", minLength=1, description="Why; it is written into the signed record")
    return DAG(
        dag_id=f"{pipeline.name}-{action}",
        description=f"{pipeline.name}: {description}",
        schedule=None,
        max_active_runs=1,
        is_paused_upon_creation=False,
        tags=["levada"],
        params={**params, "why": why},
        # Not tried again: whoever started it looks at it.
        default_args={"owner": "levada", "retries": 0},
    )


def _pod(dag: DAG, pipeline: Pipeline, command: str, arguments: list[str], limit: timedelta, image: str = "") -> Any:
    environment = {"LEVADA_PIPELINE": pipeline.name, **({"LEVADA_IMAGE": image} if image else {})}
    return KubernetesPodOperator(
        dag=dag,
        task_id=command,
        name=f"{pipeline.name}-{command}",
        # Who trains cannot sign.
        pod_template_file=str(POD_TEMPLATES / ("train.yaml" if command == "train" else "pod.yaml")),
        cmds=["levada"],
        arguments=[command, *arguments],
        image=image or None,
        env_vars=[V1EnvVar(name=name, value=value) for name, value in environment.items()],
        labels={"levada.io/pipeline": pipeline.name},
        in_cluster=True,
        deferrable=False,
        get_logs=True,
        log_events_on_failure=True,
        startup_timeout_seconds=300,
        execution_timeout=limit,
        skip_on_exit_code=SKIP_EXIT_CODE,
        # Its whole log is in the task's; a pod that stayed would outlive the release.
        on_finish_action="delete_pod",
    )
