"""What the line needs of MLflow's REST API."""

from __future__ import annotations

from typing import Any

from levada.line.target import LineError, Target


def model_versions(target: Target, model: str) -> list[dict[str, Any]]:
    """Versions of a registered model, newest first, ``tags`` as a mapping."""
    query = {"filter": f"name='{model}'", "max_results": "200", "order_by": "version_number DESC"}
    answer = _registry(target, "model-versions/search", query)
    return [_tagged(version) for version in answer.get("model_versions", [])]


def model_version(target: Target, model: str, version: str) -> dict[str, Any] | None:
    """One version, ``tags`` as a mapping; None if there is no such version."""
    return _one(target, "model-versions/get", {"name": model, "version": version})


def champion_version(target: Target, model: str) -> dict[str, Any] | None:
    """The version that the alias ``champion`` names, ``tags`` as a mapping; None before the first promotion."""
    return _one(target, "registered-models/alias", {"name": model, "alias": "champion"})


def _one(target: Target, path: str, query: dict[str, str]) -> dict[str, Any] | None:
    answer = _registry(target, path, query)
    return _tagged(answer["model_version"]) if "model_version" in answer else None


def _tagged(version: dict[str, Any]) -> dict[str, Any]:
    return {**version, "tags": {tag["key"]: tag["value"] for tag in version.get("tags", [])}}


def _registry(target: Target, path: str, query: dict[str, str]) -> dict[str, Any]:
    answer = target.endpoint("mlflow", 5000).request("GET", f"/api/2.0/mlflow/{path}", params=query)
    missing = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no such model, no such alias
    if not answer.is_success and answer.json().get("error_code") not in missing:
        raise LineError(f"MLflow answered {answer.status_code}: {answer.text[:300]}")
    body: dict[str, Any] = answer.json()
    return body
