"""`ingest`: Kafka, its topics and users, and the HTTP collector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from levada.values.block import Block, Lines, ObjectName
from levada.values.workload import Exposed, Repeated, Replicated, Served, Stored, Workload

BodyBytes = Annotated[int, Field(ge=1024, le=104_857_600)]


Heap = Annotated[str, Field(pattern=r"^[1-9][0-9]*[kmg]$")]


class Controllers(Workload, Stored):
    """Controllers of their own, beside three brokers; without them the brokers are the controllers."""

    replicas: Literal[3]
    """Controllers; one of three may be away."""
    heap: Heap
    """Size of the Java heap; keep it below about half of the memory limit."""


class Broker(Workload, Stored, Served):
    """The bundled Kafka. Not rendered when `global.kafka.external` is true."""

    replicas: Literal[1, 3]
    """Brokers: one, or three of which one may be away. It is for ever, as `controllers.enabled` is: to change it is a
    migration."""
    anti_affinity: Literal["preferred", "required"]
    """Whether three brokers must be, or only should be, on nodes of their own, and in zones of their own where
    `global.region.zones` names zones."""
    racks: dict[Annotated[str, Field(pattern=r"^[0-2]$")], str]
    """Zone of each broker, {"0": a}, where Kubernetes is older than 1.35 and does not tell a pod its zone."""
    cluster_id: Annotated[str, Field(pattern=r"^([A-Za-z0-9_-]{21}[AQgw])?$")]
    """Kafka's cluster id; empty: made of namespace, release and layout. For disks that were formatted elsewhere."""
    heap: Heap
    """Size of the Java heap; keep it below about half of the memory limit."""
    config: Lines
    """More lines of server.properties; a name the chart sets itself is replaced."""
    controllers: Controllers
    """Controllers of their own."""


class Pepper(Block):
    """What is mixed into every digest of a sensitive value."""

    existing_secret: ObjectName
    """A Secret with `pepper`, a text of 16 bytes or more; empty: made once, in `<release>-pepper`. With another one,
    equal values get other digests than before."""


class Sealing(Block):
    """What one Argon2id digest of a sensitive value costs, whoever makes it."""

    memory_kib: Annotated[int, Field(ge=8_192, le=1_048_576)]
    """KiB of memory."""
    passes: Annotated[int, Field(ge=1, le=100)]
    """Passes over that memory."""
    threads: Annotated[int, Field(ge=1, le=64)]
    """Digests that are made at once."""


class Collector(Replicated, Exposed):
    """Takes events by HTTP and answers 202 once Kafka has them."""

    existing_secret: ObjectName
    """A Secret with `keys.json`, `{"<id>": {"sha256": "<hex of the key>", "pipelines": ["*"]}}`; empty: made once, with
    one key for all pipelines, whose clear text is in `<release>-api-key`."""
    pepper: Pepper
    """What is mixed into every digest of a sensitive value."""
    max_body_bytes: BodyBytes
    """A larger event is answered with 413."""
    max_bulk_bytes: BodyBytes
    """A larger batch of events is answered with 413."""
    sealing: Sealing
    """What a digest of a sensitive value costs."""


class OrderPage(Replicated, Exposed):
    """The order page: the example application of pipeline `orders`, which examples/orders/values.yaml declares.

    Browsers keep its session only over TLS, or on this very machine.
    """

    existing_secret: ObjectName
    """A Secret with `api-key` (one that the collector knows, for pipeline `orders`) and `session-key` (32 characters or
    more); empty: the session key is made once, and the API key is that of `<release>-api-key`."""


class Ingest(Block):
    """Kafka, its topics and users, and the HTTP collector."""

    enabled: bool
    """Whether the room is rendered."""
    kafka: Broker
    """The bundled Kafka."""
    collector: Collector
    """Takes events by HTTP."""
    orders: OrderPage
    """The order page, an example application."""
    topics: Repeated
    """Makes topics, users and grants."""
