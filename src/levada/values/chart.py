"""All values of the chart, and where their defaults stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from levada.values.batch import Batch
from levada.values.block import Block
from levada.values.global_ import Global
from levada.values.ingest import Ingest
from levada.values.observability import Observability
from levada.values.registry import Registry
from levada.values.serving import Servings
from levada.values.stores import Stores
from levada.values.stream import Streams
from levada.values.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "levada"


class Values(Block):
    """All values of the chart."""

    global_: Annotated[Global, Field(alias="global")]
    """What the rooms share, and where the parts find each other."""
    credentials: Workload
    """The Job that makes, once, every Secret that no `existingSecret` replaces; keys that exist are never changed."""
    ingest: Ingest
    """Kafka, its topics and users, and the HTTP collector."""
    stream: Streams
    """The sinks, one process a pipeline, that write Kafka topics into the lake."""
    stores: Stores
    """PostgreSQL (Airflow, MLflow, the lake's catalogue) and an S3 store (the lake's files, model artefacts)."""
    batch: Batch
    """Airflow, and the pods in which its DAGs train."""
    registry: Registry
    """MLflow, with its runs and versions in PostgreSQL and its artefacts on S3."""
    serving: Servings
    """The predictors, one Deployment for each pipeline that has a model."""
    observability: Observability
    """Prometheus, which scrapes every pod of the release."""


def defaults() -> dict[str, Any]:
    """What Helm has before any file of the user: the rooms' values.yaml under their names, the umbrella's on top."""
    merged: dict[str, Any] = {}
    for room in sorted(CHART.glob("charts/*/values.yaml")):
        merged[room.parent.name] = yaml.safe_load(room.read_text())
    umbrella: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return merge(merged, umbrella)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Maps merge, anything else is replaced: Helm's way with values files."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
