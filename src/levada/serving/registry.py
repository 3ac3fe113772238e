"""The model registry as the predictor sees it: MLflow's REST API, without MLflow's client.

The client and what it brings are several times the size of the predictor; five requests are all it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx


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
    """Reads one MLflow server; every method raises :class:`httpx.HTTPError` when it does not answer well."""

    def __init__(self, uri: str) -> None:
        self._http = httpx.Client(base_url=uri, timeout=10.0)

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _get(self, path: str, **params: str | int) -> dict[str, Any]:
        body: dict[str, Any] = self._http.get(f"/api/2.0/mlflow/{path}", params=params).raise_for_status().json()
        return body

    def alias(self, model: str, alias: str) -> Version | None:
        """The version an alias stands for; None when there is no such model or alias."""
        try:
            return _version(self._get("registered-models/alias", name=model, alias=alias)["model_version"])
        except httpx.HTTPStatusError as error:
            # A missing model is RESOURCE_DOES_NOT_EXIST with 404, a missing alias INVALID_PARAMETER_VALUE with 400.
            if error.response.status_code in (400, 404):
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
            raise httpx.UnsupportedProtocol(f"artifacts of run {run_id} are at {root.scheme}://, not behind MLflow")
        address = f"/api/2.0/mlflow-artifacts/artifacts/{root.path.strip('/')}/{path}"
        return self._http.get(address).raise_for_status().content
