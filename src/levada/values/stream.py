"""`stream`: the sinks, one process a pipeline."""

from __future__ import annotations

from levada.values.block import Block
from levada.values.workload import Repeated, Workload


class Streams(Block):
    """The sinks, one process a pipeline, that write Kafka topics into the lake."""

    enabled: bool
    """Whether the room is rendered."""
    sink: Workload
    """The sinks; a pipeline has as many as its ``stream.replicas``."""
    maintenance: Repeated
    """Upkeep of each pipeline's table: compaction, snapshots, files that nothing names."""
