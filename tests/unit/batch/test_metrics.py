"""What is read from Airflow's database, by Airflow itself as the image has it, on SQLite."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.environments import image

SOURCE = Path(__file__).parents[3] / "src"
# Runs of each DAG as their states, the oldest first.
RUNS = {
    "well-train": ["failed", "success"],
    "bad-train": ["success", "failed"],
    "again-train": ["success", "failed", "running"],
    "first-train": ["running"],
    "new-train": [],
}
_SCRIPT = """
import dataclasses, datetime, json, sys
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.types import DagRunType
from levada.batch.metrics import read

now = datetime.datetime.now(datetime.UTC)
with create_session() as session:
    session.add(DagBundleModel(name="dags"))
    session.flush()
    for dag, states in json.loads(sys.argv[1]).items():
        session.add(DagModel(dag_id=dag, is_stale=False, bundle_name="dags"))
        session.flush()
        for place, state in enumerate(states):
            at = now - datetime.timedelta(minutes=60 - place)
            run = DagRun(dag_id=dag, run_id=str(place), run_type=DagRunType.MANUAL, run_after=at, start_date=at)
            run._state, run.end_date = state, at + datetime.timedelta(seconds=7)
            session.add(run)
found = read()
print(json.dumps({
    "failed": found.failed,
    "runs": {f"{dag} {state}": count for (dag, state), count in found.dag_runs.items() if count},
    "took": {dag: (each.ended - each.started).total_seconds() for dag, each in found.successes.items()},
}))
"""


@pytest.mark.timeout(600)  # a new machine downloads the image's packages first
def test_what_each_dag_did_last_is_read(tmp_path: Path) -> None:
    programs = image("airflow") / "bin"
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONPATH": str(SOURCE),
    }  # fmt: skip

    def run(*command: str) -> Any:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("airflow", "db", "migrate")
    found = json.loads(run("python", "-c", _SCRIPT, json.dumps(RUNS)).splitlines()[-1])
    assert found == {
        "failed": {"well-train": False, "bad-train": True, "again-train": True},
        "runs": {
            "well-train failed": 1, "well-train success": 1, "bad-train success": 1, "bad-train failed": 1,
            "again-train success": 1, "again-train failed": 1, "again-train running": 1, "first-train running": 1,
        },
        "took": {"well-train": 7.0, "bad-train": 7.0, "again-train": 7.0},
    }  # fmt: skip
