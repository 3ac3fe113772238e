"""The DAGs inside the real dag-processor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

DAG_PROCESSOR = "deployment/levada-airflow-dag-processor"
_NO_NETWORK = """
import json, pathlib, shutil, socket, sys
def refuse(*_, **__):
    raise AssertionError("a connection was opened while DAGs were parsed")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""
_PARSE = (
    _NO_NETWORK
    + """
from airflow.dag_processing.dagbag import DagBag
folder = pathlib.Path("/opt/airflow/dags")
bag = DagBag(str(folder), bundle_path=folder, bundle_name="dags-folder")
dags = {
    dag.dag_id: {
        "tasks": [(task.task_id, task.retries, sorted(task.downstream_task_ids)) for task in dag.topological_sort()],
        "max_active_runs": dag.max_active_runs, "catchup": dag.catchup, "tags": sorted(dag.tags),
    }
    for dag in bag.dags.values()
}
print(json.dumps({"errors": bag.import_errors, "dags": dags}))
"""
)
_BREAK_ONE = (
    _NO_NETWORK
    + """
from levada.batch import dags
from levada.config import settings
folder = pathlib.Path("/tmp/pipelines")
shutil.copytree(settings().pipelines, folder, dirs_exist_ok=True)
(folder / "lost.json").write_text('{"fields": {"a": {"type": "double"}}, "model": {"label": "b"}}')
(folder / "never.json").write_text(
    '{"fields": {"a": {"type": "double"}, "b": {"type": "string"}}, "model": {"label": "b", "schedule": "@weakly"}}'
)
try:
    dags.check(folder)
    said = ""
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(json.dumps({"said": said, "left": sorted(dag.dag_id for dag in dags.build(folder).values())}))
shutil.rmtree(folder)
"""
)


@pytest.mark.row(37)
def test_every_pipeline_with_a_model_has_a_dag_that_parses_without_io(line: Line) -> None:
    found = json.loads(line.exec(DAG_PROCESSOR, "python", "-c", _PARSE).splitlines()[-1])
    assert found["errors"] == {}
    models = {name for name, pipeline in line.target.pipelines().items() if pipeline.model is not None}
    tasks: dict[str, list[list[object]]] = {
        "train": [["train", 2, ["promote"]], ["promote", 2, []]],
        "approve": [["promote", 0, []]],
        "rollback": [["rollback", 0, []]],
        "watch": [["watch", 2, []]],
    }
    assert found["dags"] == {
        f"{name}-{action}": {"tasks": each, "max_active_runs": 1, "catchup": False, "tags": ["levada"]}
        for name in models
        for action, each in tasks.items()
    }


def test_a_broken_pipeline_is_named_and_hides_no_other(line: Line) -> None:
    found = json.loads(line.exec(DAG_PROCESSOR, "python", "-c", _BREAK_ONE).splitlines()[-1])
    assert "iris-train" in found["left"]
    assert not {"lost-train", "never-train"} & set(found["left"])
    assert found["said"].startswith("PipelineError: pipeline lost: model.label names the field `b`")
    assert "pipeline never: model.schedule `@weakly` is no schedule" in found["said"]
