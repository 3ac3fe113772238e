"""What the line needs of Airflow's REST API."""

from __future__ import annotations

import uuid
from typing import Any

from levada.line.target import LineError, Target


class Airflow:
    """A session with the API of the line's Airflow."""

    def __init__(self, target: Target) -> None:
        self._endpoint = target.endpoint("airflow", 8080)
        login = {
            "username": target.secret("airflow", "admin-username"),
            "password": target.secret("airflow", "admin-password"),
        }
        answer = self._endpoint.request("POST", "/auth/token", json=login, retry_for=180)
        if answer.status_code != 201:
            raise LineError(f"Airflow refused to log in: {answer.status_code} {answer.text[:300]}")
        self._headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def _call(self, method: str, path: str, **options: Any) -> Any:
        answer = self._endpoint.request(method, f"/api/v2/dags/{path}", headers=self._headers, retry_for=120, **options)
        if not answer.is_success:
            raise LineError(f"Airflow answered {answer.status_code} to {method} dags/{path}: {answer.text[:300]}")
        return answer.json()

    def trigger(self, dag: str) -> str:
        """Start a run of the DAG, waiting for the DAG to be parsed first; the run's id."""
        run = f"demo-{uuid.uuid4().hex[:12]}"
        # Airflow may still list a DAG of that name which was taken away before, and does not start it either.
        answer = self._endpoint.request(
            "POST", f"/api/v2/dags/{dag}/dagRuns", headers=self._headers, retry_for=120,
            json={"dag_run_id": run, "logical_date": None}, retry_statuses=(404, 502, 503),
        )  # fmt: skip
        # 409: an earlier try got through although its answer was lost.
        if answer.status_code not in (200, 201, 409):
            raise LineError(f"Airflow did not start {dag}: {answer.status_code} {answer.text[:300]}")
        return run

    def state(self, dag: str, run: str) -> str:
        """State of a DAG run: queued, running, success or failed."""
        return str(self._call("GET", f"{dag}/dagRuns/{run}")["state"])

    def failure(self, dag: str, run: str) -> str:
        """The failed task of a run, its pod and the last error in its log."""
        tasks = self._call("GET", f"{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        failed = next((task for task in tasks if task["state"] == "failed"), None)
        if failed is None:
            return ", ".join(f"task {task['task_id']} {task['state']}" for task in tasks)
        path = f"{dag}/dagRuns/{run}/taskInstances/{failed['task_id']}/logs/{failed['try_number']}"
        lines = [str(entry.get("event", entry)) for entry in self._call("GET", path)["content"]]
        pods = [line for line in lines if "Building pod" in line or "pod/" in line]
        errors = [line for line in lines if "levada:" in line or "Error" in line]
        said = (errors or lines or ["(no log)"])[-1]
        return f"task {failed['task_id']} failed; {pods[-1] if pods else 'no pod was started'}; it said: {said}"
