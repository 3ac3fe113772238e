"""`stream`: the sinks, one process a pipeline."""

from __future__ import annotations

from levada.values.block import Block
from levada.values.workload import Workload


class Streams(Block):
    """The sinks, one process a pipeline, that write Kafka topics into the lake."""

    enabled: bool
    """Whether the room is rendered."""
    sink: Workload
    """The sinks, one process a pipeline."""
