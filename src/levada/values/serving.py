"""`serving`: the predictors."""

from __future__ import annotations

from levada.values.block import Block
from levada.values.ingest import BodyBytes
from levada.values.workload import Exposed, Replicated


class Predictor(Replicated, Exposed):
    """Answers with the champion's predictions; one Deployment for each pipeline that has a model."""

    max_body_bytes: BodyBytes
    """A larger request body is answered with 413."""


class Servings(Block):
    """The predictors, one Deployment for each pipeline that has a model."""

    enabled: bool
    """Whether the room is rendered."""
    predictor: Predictor
    """Answers with the champion's predictions."""
