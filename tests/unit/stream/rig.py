"""A sink that runs for real against librdkafka's mock cluster and an Iceberg table on the local disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from levada import lake
from levada.config import KafkaSettings, Settings, SinkSettings
from levada.pipeline import Pipeline, parse_pipeline
from levada.stream.sink import Session
from levada.stream.source import Topic

PARTITIONS = (0, 1, 2, 3)  # what the mock cluster gives a new topic
SMALL = {
    "fields": {
        "n": {"type": "long", "rule": "n BETWEEN 0 AND 100000"},
        "x": {"type": "double", "required": False},
    },
    "lake": {"dedupeWindow": "1h"},
}


class Rig:
    """One pipeline with its topic and its table."""

    def __init__(self, bootstrap: str, folder: Path, name: str) -> None:
        self.settings = Settings(kafka=KafkaSettings(bootstrap=bootstrap, protocol="PLAINTEXT"), pipeline=name)
        self.folder = folder
        self.topic = Topic("topic-1", PARTITIONS)
        self._bootstrap = bootstrap
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self.declare(SMALL)

    def declare(self, entry: dict[str, Any]) -> None:
        self.pipeline: Pipeline = parse_pipeline(entry, str(self.settings.pipeline))
        for topic in (self.pipeline.topic_name, self.pipeline.dead_topic):
            # The mock cluster makes a topic when it is asked about; `levada topics apply` does it in a real one.
            self._producer.list_topics(topic, timeout=10)

    def catalog(self) -> lake.Catalog:
        return lake.Catalog(
            lake.CATALOG, uri=f"sqlite:///{self.folder}/catalog.db", warehouse=f"file://{self.folder}/warehouse"
        )

    def session(self, index: int = 0) -> Session:
        """A sink of the pipeline: the one with this index, if there are several."""
        window = self.settings.sink.window_ids
        settings = self.settings.model_copy(update={"sink": SinkSettings(index=index, window_ids=window)})
        return Session(settings, self.pipeline, self.catalog())

    def send(self, value: bytes | dict[str, Any] | None, partition: int = 0, **headers: str | bytes) -> None:
        failures: list[object] = []
        self._producer.produce(
            self.pipeline.topic_name,
            orjson.dumps(value) if isinstance(value, dict) else value,
            partition=partition,
            headers=[(name.replace("_", "-"), content) for name, content in headers.items()],
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
        assert self._producer.flush(10) == 0
        assert not failures

    def send_many(self, events: Iterable[tuple[bytes, str, str, int]]) -> None:
        """Value, event id, event time and partition of each."""
        failures: list[object] = []
        for value, event_id, stamp, partition in events:
            self._producer.produce(
                self.pipeline.topic_name,
                value,
                partition=partition,
                headers=[("event-id", event_id), ("event-time", stamp)],
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
            self._producer.poll(0)
        assert self._producer.flush(30) == 0
        assert not failures

    def rows(self) -> list[dict[str, Any]]:
        table = self.catalog().load_table(self.pipeline.table)
        rows: list[dict[str, Any]] = table.scan().to_arrow().to_pylist()
        return sorted(rows, key=lambda row: (row["_topic"], row["_partition"], row["_offset"]))

    def ids(self) -> Counter[str]:
        return Counter(row["_event_id"] for row in self.rows())

    def letters(self) -> list[tuple[Message, dict[str, str]]]:
        """The dead letters with their headers, by the place of the refused event."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "letters"})
        places = [TopicPartition(self.pipeline.dead_topic, partition, 0) for partition in PARTITIONS]
        count = sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
        consumer.assign(places)
        found = [
            (message, {name: value.decode() for name, value in message.headers()})
            for message in consumer.consume(count, 10)
        ]
        consumer.close()
        return sorted(found, key=lambda letter: (int(letter[1]["partition"]), int(letter[1]["offset"])))


def read(session: Session, count: int) -> None:
    """Read ``count`` messages into the buffer of a session that has started; nothing is committed."""
    offsets = sum(session._reached.values()) + count
    for _ in range(50):
        if sum((session._reached | session._buffer.reached).values()) >= offsets:
            return
        session._buffer.last = session._buffer.since = session._last_commit = float("inf")  # not due
        session.step()
    raise AssertionError("the messages did not come")


def run(rig: Rig, count: int) -> None:
    """One sink from start to stop, that reads ``count`` messages."""
    with rig.session() as session:
        session.start()
        read(session, count)
        session.commit()
