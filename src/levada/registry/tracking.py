"""The MLflow server as training and the gate use it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from levada import evidence
from levada.config import Settings, required
from levada.evidence import RUN_TAG
from levada.registry.errors import TrainingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow reads these when it is imported, so nothing else of the room imports it at module level.
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its lines go through ours
    "GIT_PYTHON_REFRESH": "quiet",  # there is no git in the image
}
_RUN_ID: Final = r"[A-Za-z0-9_.~:+-]{1,250}"  # what Airflow allows; also safe inside a filter


def connect(settings: Settings) -> MlflowClient:
    """A client of the configured server; the fluent functions of ``mlflow`` use the same server."""
    os.environ.update(_ENVIRONMENT)
    import mlflow

    uri = required(settings.mlflow, "LEVADA_MLFLOW__URI").uri
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def check_run(run: str) -> str:
    """The run id if it can be used as one.

    Raises:
        TrainingError: it holds characters that Airflow would refuse too.
    """
    if not re.fullmatch(_RUN_ID, run):
        raise TrainingError(f"--run {run!r} is no run id: letters, digits and _ . ~ : + - only, at most 250")
    return run


def version_of_run(client: MlflowClient, model: str, run: str) -> Any | None:
    """The model version a run registered, or None; the first one if a retry raced its own zombie."""
    found = client.search_model_versions(f"name = '{model}' and tags.`{RUN_TAG}` = '{run}'")
    return min(found, key=lambda version: int(version.version), default=None)


def versions(client: MlflowClient, model: str) -> list[Any]:
    """Every version of a model."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{model}'", max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            return found


def champion(client: MlflowClient, model: str) -> Any | None:
    """The version that the newest decision names, unproven; None while there is none.

    Not the one behind the alias: that may be moved by hand, and a training shall not fail for it.
    """
    known = {str(version.version): version for version in versions(client, model)}
    latest = evidence.claimed(version.tags for version in known.values())
    return known.get(latest.champion) if latest is not None and latest.champion is not None else None


def upload(client: MlflowClient, run_id: str, files: Mapping[str, bytes]) -> None:
    """Store artifacts of an MLflow run, by their paths."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run_id, folder)


def download(client: MlflowClient, run_id: str, path: str) -> bytes:
    """One artifact of an MLflow run."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()
