"""`ingest`: Kafka, its topics and users, and the HTTP collector."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from levada.values.block import Block, Lines, ObjectName
from levada.values.workload import Exposed, Repeated, Replicated, Served, Stored, Workload

BodyBytes = Annotated[int, Field(ge=1024, le=104_857_600)]


class Broker(Workload, Stored, Served):
    """The bundled Kafka: one KRaft broker. Not rendered when `global.kafka.external` is true."""

    heap: Annotated[str, Field(pattern=r"^[1-9][0-9]*[kmg]$")]
    """Size of the Java heap; keep it below about half of the memory limit."""
    config: Lines
    """More lines of server.properties; a name the chart sets itself is replaced."""


class Collector(Replicated, Exposed):
    """Takes events by HTTP and answers 202 once Kafka has them."""

    existing_secret: ObjectName
    """A Secret with `keys.json`, `{"<id>": {"sha256": "<hex of the key>", "pipelines": ["*"]}}`; empty: made once, with
    one key for all pipelines, whose clear text is in `<release>-api-key`."""
    max_body_bytes: BodyBytes
    """A larger request body is answered with 413."""


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
