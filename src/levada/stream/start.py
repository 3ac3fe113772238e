"""Where a sink begins to read, and when it must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from pyiceberg.catalog.sql import SqlCatalog

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline
from levada.stream import metrics
from levada.stream.offsets import Offsets
from levada.stream.source import Source, Topic
from levada.stream.table import OwnedTable

Bounds = Mapping[int, tuple[int, int]]
"""Partition → (first offset that Kafka still has, offset of the next event to come)."""

_HOW_TO_GO_ON: Final = (
    "If that was meant, run `levada sink --accept` in the sink's container: the sink then reads what Kafka has now, "
    "and drops the event ids that the table has already"
)

log = structlog.get_logger(__name__)


class NeedsOperatorError(UserError):
    """The sink cannot go on by itself without the risk of losing or doubling events.

    Attributes:
        state: ``topic-replaced``, ``topic-truncated`` or ``offsets-lost``.
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"{message}. {_HOW_TO_GO_ON}")
        self.state = state


def starting_points(pipeline: Pipeline, offsets: Offsets | None, topic: Topic, bounds: Bounds) -> dict[int, int]:
    """Partition → offset to read first.

    Raises:
        NeedsOperatorError: table and topic do not belong together.
    """
    table = ".".join(pipeline.table)
    if offsets is None:
        raise NeedsOperatorError(
            "offsets-lost",
            f"table {table} holds data, but no snapshot tells how far topic {pipeline.topic_name} was read",
        )
    if offsets.topics and topic.id not in offsets.topics:
        raise replaced(pipeline, topic)
    known = offsets.of(topic.id)
    start = {}
    for partition, (first, end) in bounds.items():
        reached = known[partition].next if partition in known else first
        if reached > end:
            raise NeedsOperatorError(
                "topic-truncated",
                f"topic {pipeline.topic_name}, partition {partition} ends at offset {end}, but table {table} has read "
                f"up to {reached}: Kafka lost acknowledged events",
            )
        if reached < first:
            metrics.SKIPPED.labels(pipeline.name).inc(first - reached)
            log.error(
                "Kafka deleted events before the sink read them: lengthen topic.retention",
                topic=pipeline.topic_name,
                partition=partition,
                first_lost=reached,
                lost=first - reached,
            )
        start[partition] = max(reached, first)
    return start


def replaced(pipeline: Pipeline, topic: Topic) -> NeedsOperatorError:
    """The state in which the topic is not the one that the table was read from."""
    return NeedsOperatorError(
        "topic-replaced",
        f"topic {pipeline.topic_name} was deleted and created again (its id is {topic.id} now); what the sink had not "
        f"read of the old one is gone",
    )


def accept(catalog: SqlCatalog, kafka: KafkaSettings, pipeline: Pipeline) -> dict[int, int]:
    """Let the pipeline's table go on with the topic as Kafka has it now; returns partition → next offset."""
    source = Source(kafka, pipeline)
    try:
        topic = source.topic()
        table = OwnedTable(catalog, pipeline)
        known = (table.offsets or Offsets({})).of(topic.id)
        start = {}
        for partition, (first, end) in source.bounds(topic.partitions).items():
            reached = known[partition].next if partition in known else first
            start[partition] = min(max(reached, first), end)
        table.claim(topic.id, start)
    finally:
        source.close()
    return start
