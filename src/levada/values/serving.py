"""`serving`: the predictors."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from levada.values.block import Block, ObjectName
from levada.values.ingest import BodyBytes
from levada.values.workload import Exposed, Replicas, Replicated


class ApiKeys(Block):
    """Who may ask for predictions."""

    enabled: bool
    """Whether a prediction needs a key; without, who reaches the predictor may ask."""
    existing_secret: ObjectName
    """A Secret with `keys.json`, `{"<id>": {"sha256": "<hex of the key>", "pipelines": ["*"]}}`; empty: made once, with
    one key for all pipelines, whose clear text is in `<release>-api-key`, as the collector's is."""


class Cache(Block):
    """Where the models that served last are kept, so that a predictor starts while MLflow is away."""

    existing_claim: ObjectName
    """A PersistentVolumeClaim that all predictors can mount, ReadWriteMany where there are several; empty: with the
    pod, so that a container that starts again finds its model, but a new pod needs MLflow."""


class Predictor(Replicated, Exposed):
    """Answers with the champion's predictions; one Deployment for each pipeline that has a model."""

    max_replicas: Replicas
    """Of a pipeline that does not say `serving.maxReplicas`: above `replicas`, an autoscaler adds pods up to this."""
    target_cpu: Annotated[int, Field(ge=10, le=100)]
    """Percentage of the requested processors at which pods are added."""
    target_in_flight: Annotated[float, Field(ge=0, le=10_000)]
    """Requests in flight, on average of a pod, at which pods are added, by custom metrics; 0: `targetCpu` decides."""
    api_keys: ApiKeys
    """Who may ask for predictions."""
    cache: Cache
    """Where the models that served last are kept."""
    max_body_bytes: BodyBytes
    """A larger request body is answered with 413."""


class Servings(Block):
    """The predictors, one Deployment for each pipeline that has a model."""

    enabled: bool
    """Whether the room is rendered."""
    predictor: Predictor
    """Answers with the champion's predictions."""
