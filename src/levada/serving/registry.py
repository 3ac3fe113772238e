"""The model registry as the predictor sees it: MLflow's REST API, without MLflow's client.

The client and what it brings are several times the size of the predictor; five requests are all it takes. They are
made with the standard library, which is loaded already: another client would be some megabytes of each predictor.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

_TIMEOUT_SECONDS: Final = 10.0


class RegistryError(Exception):
    """The registry does not answer, or not well; the message says how.

    Attributes:
        status: of an answer that says that something is wrong; None for all else.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Version:
    """One registered model version."""

    number: str
    run_id: str
    """The MLflow run that holds its files."""
    tags: Mapping[str, str]


def _version(raw: dict[str, Any]) -> Version:
    return Version(raw["version"], raw["run_id"], {tag["key"]: tag["value"] for tag in raw.get("tags", ())})


class Registry:
    """Reads one MLflow server; every method raises :class:`RegistryError` when it does not answer well."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")

    def _read(self, path: str) -> bytes:
        try:
            with urlopen(self._uri + path, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - who deploys it names it
                body: bytes = answer.read()
                return body
        except HTTPError as error:
            error.close()
            raise RegistryError(f"{path}: {error.code} {error.reason}", error.code) from error
        except (OSError, http.client.HTTPException) as error:
            raise RegistryError(f"{path}: {getattr(error, 'reason', None) or error!r}") from error

    def _get(self, path: str, **params: str | int) -> dict[str, Any]:
        try:
            body: dict[str, Any] = json.loads(self._read(f"/api/2.0/mlflow/{path}?{urlencode(params)}"))
        except ValueError as error:
            raise RegistryError(f"{path}: the answer is not JSON: {error}") from error
        return body

    def alias(self, model: str, alias: str) -> Version | None:
        """The version an alias stands for; None when there is no such model or alias."""
        try:
            return _version(self._get("registered-models/alias", name=model, alias=alias)["model_version"])
        except RegistryError as error:
            # A missing model is RESOURCE_DOES_NOT_EXIST with 404, a missing alias INVALID_PARAMETER_VALUE with 400.
            if error.status in (400, 404):
                return None
            raise

    def version(self, model: str, number: str) -> Version:
        """One version of a model."""
        return _version(self._get("model-versions/get", name=model, version=number)["model_version"])

    def recent(self, model: str, count: int) -> list[Version]:
        """At most ``count`` versions of a model, newest first."""
        body = self._get(
            "model-versions/search", filter=f"name = '{model}'", max_results=count, order_by="version_number DESC"
        )
        return [_version(raw) for raw in body.get("model_versions", ())]

    def download(self, run_id: str, path: str) -> bytes:
        """One file of a run, through the server, which alone can reach the artifact store."""
        root = urlsplit(self._get("runs/get", run_id=run_id)["run"]["info"]["artifact_uri"])
        if root.scheme != "mlflow-artifacts":
            raise RegistryError(f"artifacts of run {run_id} are at {root.scheme}://, not behind MLflow")
        return self._read(f"/api/2.0/mlflow-artifacts/artifacts/{root.path.strip('/')}/{path}")
