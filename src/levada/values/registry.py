"""`registry`: MLflow."""

from __future__ import annotations

from levada.values.block import Block, Switches
from levada.values.workload import Exposed, Replicated, Workload


class MlflowServer(Replicated, Exposed):
    """The bundled MLflow. Not rendered when `global.mlflow.external` is true."""

    allowed_hosts: Switches
    """Further host names under which clients may call it, {name: true}; its Service and its ingress are always
    allowed."""


class Registry(Block):
    """MLflow, with its runs and versions in PostgreSQL and its artefacts on S3."""

    enabled: bool
    """Whether the room is rendered."""
    mlflow: MlflowServer
    """The bundled MLflow."""
    migrate: Workload
    """Brings the database's schema to this version of MLflow."""
