"""Where a sink begins to read, and when it must not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import structlog
from pyiceberg.catalog.sql import SqlCatalog

from levada.config import KafkaSettings
from levada.errors import UserError
from levada.pipeline import Pipeline, seconds
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
_WINDOW_SHARE: Final = 0.9
"""Of the dedupe window is read again: by the time a sink fills it, its oldest part is over."""

log = structlog.get_logger(__name__)

_counted: Final[set[tuple[str, str]]] = set()
"""Pipelines and new topics that this process has counted."""


class NeedsOperatorError(UserError):
    """The sink cannot go on by itself without the risk of losing or doubling events.

    Attributes:
        state: ``topic-replaced``, ``topic-truncated`` or ``offsets-lost``.
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"{message}. {_HOW_TO_GO_ON}")
        self.state = state


def starting_points(pipeline: Pipeline, offsets: Offsets | None, topic: Topic, bounds: Bounds) -> dict[int, int]:
    """Partition → offset to read first, for the partitions of one sink.

    Raises:
        NeedsOperatorError: table and topic do not belong together.
    """
    table = ".".join(pipeline.table)
    if offsets is None:
        raise NeedsOperatorError(
            "offsets-lost",
            f"table {table} holds data, but no snapshot tells how far topic {pipeline.topic_name} was read",
        )
    known = offsets.of(topic.id)
    read_of_another = any(
        partition in read for topic_id, read in offsets.topics.items() if topic_id != topic.id for partition in bounds
    )
    # A sibling may have gone on with the new topic already: what counts are the partitions that are asked for.
    if read_of_another and not any(partition in known for partition in bounds):
        note_replaced(pipeline, topic, uncommitted=0)
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


def note_replaced(pipeline: Pipeline, topic: Topic, uncommitted: int) -> None:
    """Say that the topic is not the one that the table was read from, in the log and in a metric.

    Args:
        pipeline: whose ``stream.onTopicReplaced`` decides.
        topic: the new one.
        uncommitted: events that were read and not committed; nobody can tell of which of the two topics they are.

    Raises:
        NeedsOperatorError: the policy is to stop.
    """
    policy = pipeline.stream.on_topic_replaced
    if (pipeline.name, topic.id) not in _counted:  # it is looked at again at the next start, or while the sink waits
        _counted.add((pipeline.name, topic.id))
        metrics.TOPIC_REPLACED.labels(pipeline.name, policy).inc()
    told = (
        f"topic {pipeline.topic_name} was deleted and created again (its id is {topic.id} now); what the sink had not "
        "committed of the old one is gone"
    )
    if policy == "stop":
        raise NeedsOperatorError("topic-replaced", told)
    log.error(
        told + "; stream.onTopicReplaced says to read the new one from its beginning",
        pipeline=pipeline.name,
        topic_id=topic.id,
        uncommitted=uncommitted,
    )


def accept(catalog: SqlCatalog, kafka: KafkaSettings, pipeline: Pipeline) -> dict[int, int]:
    """Let the pipeline's table go on with the topic as Kafka has it now; returns partition → next offset.

    Where Kafka lost events that the table has, later ones have their offsets. Nobody knows from which on, so what came
    in the last part of the dedupe window is read again; the sink drops what the table has of it.
    """
    again = _WINDOW_SHARE * seconds(pipeline.lake.dedupe_window)
    source = Source(kafka, pipeline)
    try:
        topic = source.topic()
        table = OwnedTable(catalog, pipeline)
        known = (table.offsets or Offsets({})).of(topic.id)
        start = {}
        for partition, (first, end) in source.bounds(topic.partitions).items():
            reached = known[partition].next if partition in known else first
            if reached > end:
                reached = min(source.since(partition, time.time() - again), end)
            start[partition] = max(reached, first)
        table.claim(topic.id, start)
    finally:
        source.close()
    return start
