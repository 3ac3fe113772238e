"""What a sink asks of a real broker about times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka.admin import NewTopic

from levada.pipeline import parse_pipeline
from levada.stream.source import Source

from ..ingest.brokers import Brokers, running

PIPELINE = parse_pipeline({"fields": {"n": {"type": "long"}}}, "timed")
BEGIN = 1_790_000_000


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    yield from running(tmp_path_factory.mktemp("kafka"), {"ingest": {"kafka": {"replicas": 1}}}, count=1)


@pytest.mark.row(20, process=True, part="what --accept reads again where Kafka lost events")
def test_the_first_event_since_a_time(kafka: Brokers) -> None:
    topic = PIPELINE.topic_name
    kafka.admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)
    for number in range(3):
        sent = kafka.produce("admin", topic, b"{}", partition=1, timestamp=(BEGIN + 10 * number) * 1000)
        assert sent is None
    with closing(Source(kafka.settings("admin"), PIPELINE)) as source:
        assert [source.since(1, BEGIN + seconds) for seconds in (-1, 0, 1, 20, 21)] == [0, 0, 1, 2, 3]
        assert source.since(0, BEGIN) == 0
