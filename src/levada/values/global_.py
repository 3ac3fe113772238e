"""`global`: what the rooms share, and where the parts find each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from levada.pipeline import PIPELINE_NAME, Declaration
from levada.values.block import Block, Host, ObjectName, Switches
from levada.values.workload import Image

Port = Annotated[int, Field(ge=1, le=65535)]
Url = Annotated[str, Field(pattern=r"^(https?://\S+)?$")]
"""An http or https URL, or nothing."""


class Images(Block):
    """What holds for all images."""

    registry: str
    """Put before every repository, for example `registry.example.com/mirror`."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    """When a node pulls an image."""
    pull_secrets: Switches
    """Secrets with credentials of the registry, {name: true}."""
    tools: Image
    """Levada's own commands: collector, sinks, set-up Jobs, init containers that wait."""


class Region(Block):
    """The region that this release stands in."""

    name: str
    """Name of the region, a label on every metric."""
    role: Literal["active", "passive"]
    """Whether this region takes the load."""
    zones: Switches
    """Zones in which pods may run, {name: true}; empty: anywhere."""


class Authority(Block):
    """The authority that signed a server's certificate."""

    existing_secret: ObjectName
    """A Secret that holds the authority's certificate; empty: the system's authorities."""
    key: str
    """The certificate's key in that Secret."""


class Credentials(Block):
    """A user's credentials."""

    existing_secret: ObjectName
    """A Secret with `username` and `password`; empty: made once by the credentials Job."""


class KafkaUsers(Block):
    """The users of Kafka, each with its own grants."""

    broker: Credentials
    """The brokers among themselves; bundled Kafka only."""
    admin: Credentials
    """Makes topics, users and grants."""
    collector: Credentials
    """Writes events."""
    sink: Credentials
    """Reads events and predictions, writes dead letters."""
    predictor: Credentials
    """Writes what was predicted; for an external Kafka, needed where predictions are logged."""
    loader: Credentials
    """Reads events by ranges of offsets; optional for an external Kafka."""
    metrics: Credentials
    """Reads offsets and lag."""


class KafkaTls(Block):
    """Encryption of the bundled Kafka, decided when it is installed."""

    existing_secret: ObjectName
    """A Secret with `tls.crt` and `tls.key` (PKCS 8) for all names of the brokers, and `ca.crt` unless `ca` names
    another; empty: no encryption."""


class Kafka(Block):
    """Where events go."""

    external: bool
    """Use the Kafka named here instead of the bundled one."""
    bootstrap: Annotated[str, Field(pattern=r"^([^\s,:]+:[0-9]+(,[^\s,:]+:[0-9]+)*)?$")]
    """Brokers of the external Kafka, `host:port,host:port`."""
    protocol: Literal["SASL_SSL", "SASL_PLAINTEXT"]
    """Protocol of the external Kafka."""
    mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"]
    """SASL mechanism of the external Kafka."""
    replication_factor: Annotated[int, Field(ge=1, le=9)]
    """Brokers of the external Kafka that keep a copy of each topic; the bundled Kafka keeps one on every broker."""
    tls: KafkaTls
    """Encryption of the bundled Kafka."""
    ca: Authority
    """The authority that signed the brokers' certificates."""
    users: KafkaUsers
    """The users of Kafka, each with its own grants."""


class Database(Credentials):
    """A database and the role that owns it."""

    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
    """Name of the database."""


class Databases(Block):
    """The databases, each with an owner of its own."""

    airflow: Database
    """Airflow's metadata."""
    mlflow: Database
    """MLflow's runs and versions."""
    lake: Database
    """The lake's catalogue."""


class Postgres(Block):
    """Where metadata is kept."""

    external: bool
    """Use the server named here instead of the bundled one."""
    host: Host
    """Host of the external server."""
    port: Port
    """Port of the server."""
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"]
    """How connections to the external server are encrypted, in libpq's words."""
    ca: Authority
    """The authority that signed the server's certificate."""
    admin: Credentials
    """Makes roles and databases; optional for an external server, where they may exist already."""
    databases: Databases
    """The databases, each with an owner of its own."""


Bucket = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]


class Buckets(Block):
    """Names of the buckets."""

    lake: Bucket
    """The lake's files."""
    mlflow: Bucket
    """Artefacts of runs and models."""


class S3(Block):
    """Where files are kept."""

    external: bool
    """Use the store named here instead of the bundled one."""
    endpoint: Url
    """URL of the external store; empty: AWS."""
    region: str
    """Region of the store."""
    path_style: bool
    """Buckets in the path (most stores) or in the host name (AWS)."""
    buckets: Buckets
    """Names of the buckets."""
    existing_secret: ObjectName
    """A Secret with `access-key-id` and `secret-access-key`; empty: made once, or for an external store the default
    chain of the SDK, such as a role of the service account."""


class Mlflow(Block):
    """Where models are registered."""

    external: bool
    """Use the server named here instead of the bundled one."""
    uri: Url
    """URL of the external server."""


class GateKey(Block):
    """What the gate signs its decisions with."""

    existing_secret: ObjectName
    """A Secret with `key`; empty: made once."""


class Global(Block):
    """What the rooms share, and where the parts find each other."""

    image: Images
    """What holds for all images."""
    region: Region
    """The region that this release stands in."""
    storage_class: ObjectName
    """Storage class of all volumes; empty: the cluster's default."""
    kafka: Kafka
    """Where events go."""
    postgres: Postgres
    """Where metadata is kept."""
    s3: S3
    """Where files are kept."""
    mlflow: Mlflow
    """Where models are registered."""
    gate: GateKey
    """What the gate signs its decisions with."""
    pipelines: dict[Annotated[str, Field(pattern=PIPELINE_NAME)], Declaration]
    """The declared pipelines, by name."""
