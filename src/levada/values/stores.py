"""`stores`: PostgreSQL and an S3 store."""

from __future__ import annotations

from levada.values.block import Block, Lines
from levada.values.workload import Image, Repeated, Resources, Served, Stored, Workload


class Exporter(Block):
    """The container that turns PostgreSQL's statistics into metrics."""

    enabled: bool
    """Whether it runs beside PostgreSQL."""
    image: Image
    """The image that the exporter runs."""
    resources: Resources
    """Requests and limits of the exporter."""


class PostgresServer(Workload, Stored, Served):
    """The bundled PostgreSQL. Not rendered when `global.postgres.external` is true."""

    config: Lines
    """More settings of postgresql.conf; a name the chart sets itself is replaced."""
    exporter: Exporter
    """Turns PostgreSQL's statistics into metrics."""


class S3Server(Workload, Stored, Served):
    """The bundled SeaweedFS. Not rendered when `global.s3.external` is true."""


class Stores(Block):
    """PostgreSQL (Airflow, MLflow, the lake's catalogue) and an S3 store (the lake's files, model artefacts)."""

    enabled: bool
    """Whether the room is rendered."""
    postgres: PostgresServer
    """The bundled PostgreSQL."""
    s3: S3Server
    """The bundled SeaweedFS."""
    setup: Repeated
    """Makes roles, databases and buckets."""
