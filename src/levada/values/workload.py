"""The knobs that every workload has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from levada.values.block import Block, Bytes, Cpu, Entry, Host, Labels, ObjectName, Open

Replicas = Annotated[int, Field(ge=0, le=100)]
Schedule = Annotated[str, Field(pattern=r"^(@[a-z]+|\S+( \S+){4})$")]
"""A cron expression of five fields, or a preset such as @hourly."""


Tag = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$", json_schema_extra={"not": {"const": "latest"}})
]


class Image(Block):
    """A container image."""

    repository: str
    """Repository, behind `global.image.registry`; empty: the image of the block around it, or `global.image.tools`."""
    tag: Tag
    """Tag; empty: the chart's version. `latest` is refused."""
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
    """Digest, `sha256:…`; it wins over the tag."""


class Amounts(Block):
    """Processors and memory."""

    cpu: Cpu
    """Processors."""
    memory: Bytes
    """Memory."""


class Resources(Block):
    """What a container is promised, and what it may not exceed."""

    requests: Amounts
    """What the scheduler keeps free for the container."""
    limits: Amounts
    """Where the container is slowed down (processors) or killed (memory)."""


class Toleration(Entry):
    """A taint that does not keep the pods away."""

    key: str | None = None
    """The taint's key; none: every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """How the value is compared."""
    value: str | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; none: each."""
    toleration_seconds: int | None = None
    """How long a running pod stays on a node that gets the taint."""


class ExtraVolume(Entry):
    """A volume that the chart does not know of."""

    mount_path: Annotated[str, Field(pattern="^/")]
    """Where the workload's containers see it."""
    volume: Open
    """A Kubernetes volume source, for example {configMap: {name: mine}}."""


class Account(Block):
    """The workload's service account."""

    annotations: Labels
    """Annotations of the account, for example `eks.amazonaws.com/role-arn`."""


class Placed(Block):
    """Where a workload's pods run and what is attached to them."""

    image: Image
    """The image that the workload runs."""
    resources: Resources
    """Requests and limits of the main container."""
    node_selector: Labels
    """Labels that a node must have."""
    tolerations: list[Toleration]
    """Taints that do not keep the pods away."""
    affinity: Open
    """Kubernetes affinity of the pods."""
    annotations: Labels
    """Annotations of the pods."""
    labels: Labels
    """Further labels of the pods."""
    extra_env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str]
    """Further environment variables, {NAME: value}; one the chart sets itself is replaced."""
    extra_volumes: dict[Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")], ExtraVolume]
    """Further volumes, by name."""
    service_account: Account
    """The workload's service account."""


class Workload(Placed):
    """The knobs that every workload has."""

    enabled: bool
    """Whether the workload is rendered."""


class Replicated(Workload):
    """A workload that can run more than once."""

    replicas: Replicas
    """Pods; above one they are spread over nodes and drained one at a time."""


class Repeated(Workload):
    """A Job that runs at every change, and again on a schedule because what it makes can drift."""

    schedule: Schedule
    """When it runs again: a cron expression."""


class Service(Block):
    """The workload's Service."""

    annotations: Labels
    """Annotations of the Service."""


class Persistence(Block):
    """The workload's volume."""

    storage_class: ObjectName
    """Storage class; empty: `global.storageClass`."""
    size: Bytes
    """Size of the volume."""


class Tls(Block):
    """Encryption between clients and the ingress controller."""

    secret_name: ObjectName
    """A Secret with tls.crt and tls.key; empty: no TLS."""


class Ingress(Block):
    """A way in through an ingress controller."""

    enabled: bool
    """Whether the Ingress is rendered."""
    class_name: ObjectName
    """Ingress class; empty: the cluster's default."""
    host: Host
    """Host name; a predictor answers at `<pipeline>.<host>`."""
    annotations: Labels
    """Annotations of the Ingress."""
    tls: Tls
    """Encryption between clients and the ingress controller."""


class Gateway(Block):
    """The Gateway that a route is attached to; TLS is the gateway's."""

    name: ObjectName
    """Name of the Gateway."""
    namespace: ObjectName
    """Its namespace; empty: the release's."""
    section: ObjectName
    """One of its listeners; empty: any."""


class HttpRoute(Block):
    """A way in through a Gateway."""

    enabled: bool
    """Whether the HTTPRoute is rendered."""
    host: Host
    """Host name; a predictor answers at `<pipeline>.<host>`."""
    gateway: Gateway
    """The Gateway that the route is attached to; TLS is the gateway's."""


class Served(Block):
    """A workload that others in the cluster call."""

    service: Service
    """The workload's Service."""


class Exposed(Served):
    """A workload that users call."""

    ingress: Ingress
    """A way in through an ingress controller."""
    http_route: HttpRoute
    """A way in through a Gateway."""


class Stored(Block):
    """A workload that keeps data."""

    persistence: Persistence
    """The workload's volume."""
