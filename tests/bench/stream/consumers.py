"""The ways to carry a topic into Parquet or the lake, each a process of its own that says what CPU it took.

``python -m tests.bench.stream.consumers WAY BOOTSTRAP TOPIC COUNT FOLDER``: reads COUNT events from the beginning of
every partition and prints one JSON line: events, CPU seconds, wall seconds, from the first event to the last one kept.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from levada import lake
from levada.config import KafkaSettings, Settings
from levada.pipeline import parse_pipeline
from levada.stream.sink import Session

PARTITIONS = tuple(range(6))
ENTRY: dict[str, Any] = {
    "key": "user_id",
    "fields": {
        "order_id": {"type": "string", "rule": "order_id LIKE '%-%'"},
        "user_id": {"type": "string"},
        "amount": {"type": "double", "rule": "amount BETWEEN 0 AND 10000"},
        "quantity": {"type": "long", "rule": "quantity > 0 AND quantity <= 100"},
        "product": {"type": "string", "oneOf": ["iu_ticket", "cp_ticket", "ee_ticket"]},
        "paid": {"type": "boolean"},
        "score": {"type": "double", "rule": "score BETWEEN 0 AND 1"},
        "note": {"type": "string", "required": False},
    },
    "stream": {"commitEvery": "10s"},
}
SCHEMA = pa.schema(
    [
        (
            name,
            {"string": pa.string(), "double": pa.float64(), "long": pa.int64(), "boolean": pa.bool_()}[field["type"]],
        )
        for name, field in ENTRY["fields"].items()
    ]
)
TYPES: dict[str, set[type]] = {"string": {str}, "double": {int, float}, "long": {int}, "boolean": {bool}}
READ = 10_000  # as the sink does; the floor is higher with more
BATCH = 20_000
WRITE = 150_000


class Clock:
    """CPU and wall time from the first event on."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None

    def start(self) -> None:
        if self._began is None:
            self._began = (time.process_time(), time.perf_counter())

    def report(self, events: int) -> None:
        assert self._began is not None
        cpu, wall = self._began
        print(json.dumps({"events": events, "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}))


def messages(bootstrap: str, topic: str, count: int, clock: Clock) -> Iterator[list[Message]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in PARTITIONS])
    clock.start()
    read = 0
    while read < count:
        found = consumer.consume(READ, 1.0)
        read += len(found)
        yield found
    consumer.close()


def _screen(value: bytes) -> None:
    event = orjson.loads(value)
    if type(event) is not dict or b"\n" in value:
        raise ValueError("not one event")


def floor(bootstrap: str, topic: str, count: int, folder: Path) -> None:
    """What cannot be had for less: consume in C, a strict screen of each message, Arrow's parser, Parquet."""
    clock, tables, rows, files = Clock(), [], 0, 0
    for batch in messages(bootstrap, topic, count, clock):
        if not batch:
            continue
        values = [message.value() for message in batch]
        for value in values:
            _screen(value)
        joined = b"\n".join(values)
        tables.append(
            pj.read_json(
                pa.BufferReader(joined),
                read_options=pj.ReadOptions(use_threads=False, block_size=len(joined) + 1),
                parse_options=pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error"),
            )
        )
        assert tables[-1].num_rows == len(batch)
        rows += len(batch)
        if rows >= WRITE:
            pq.write_table(pa.concat_tables(tables), folder / f"{files}.parquet", compression="zstd")
            tables, rows, files = [], 0, files + 1
    if tables:
        pq.write_table(pa.concat_tables(tables), folder / f"{files}.parquet", compression="zstd")
    clock.report(count)


def _fits(event: dict[str, Any]) -> bool:
    return (
        "-" in event["order_id"]
        and 0 <= event["amount"] <= 10000
        and 0 < event["quantity"] <= 100
        and event["product"] in ("iu_ticket", "cp_ticket", "ee_ticket")
        and 0 <= event["score"] <= 1
    )


def bare(bootstrap: str, topic: str, count: int, folder: Path) -> None:
    """What one writes first: json.loads, from_pylist, Parquet files of the values alone."""
    clock, rows, files, read = Clock(), [], 0, 0
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in PARTITIONS])
    clock.start()
    while read < count:
        message = consumer.poll(1.0)
        if message is None:
            continue
        read += 1
        event = json.loads(message.value())
        if _fits(event):
            rows.append(event)
        if len(rows) >= WRITE or read == count:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{files}.parquet", compression="zstd")
            rows, files = [], files + 1
    consumer.close()
    clock.report(count)


def _broken(event: Any) -> str | None:
    """The first promise that an event breaks, asked field by field, as one writes it down."""
    if type(event) is not dict or not event.keys() <= ENTRY["fields"].keys():
        return "unknown"
    for name, field in ENTRY["fields"].items():
        value = event.get(name)
        if value is None:
            if field.get("required", True):
                return "required"
        elif type(value) not in TYPES[field["type"]]:
            return "type"
    return None if _fits(event) else "rule"


def naive(bootstrap: str, topic: str, count: int, folder: Path) -> None:
    """The same work, written plainly: one message after the other, json.loads, a dict each, append.

    It checks the types, the rules and the bounds of the event time, drops repeated ids by a set, sends what it refuses
    to a topic of dead letters and gives the table the same rows. What it does less: rows and offsets are two commits,
    so a kill between them doubles rows, and it knows the ids of its own life only. It asks Kafka for many messages at
    once, as the sink does.
    """
    from pyiceberg.catalog.sql import SqlCatalog

    pipeline = parse_pipeline(ENTRY, topic)
    catalog = SqlCatalog(lake.CATALOG, uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
    table, schema = lake.ensure_table(catalog, pipeline), lake.arrow_schema(pipeline)
    horizon, ahead = timedelta(days=7), timedelta(hours=1)
    dead = Producer({"bootstrap.servers": bootstrap})
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    clock, read = Clock(), 0
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in PARTITIONS])
    clock.start()
    while read < count:
        for message in consumer.consume(1000, 1.0):
            read += 1
            headers = dict(message.headers())
            event_id = headers["event-id"].decode()
            event_time = datetime.fromisoformat(headers["event-time"].decode())
            arrived = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
            try:
                event = json.loads(message.value())
                reason = _broken(event)
            except ValueError:
                event, reason = {}, "json"
            if not arrived - horizon <= event_time <= arrived + ahead:
                reason = "event-time"
            if reason is not None:
                dead.produce(f"{topic}.dead", message.value(), message.key(), headers={**headers, "rule": reason})
                continue
            if event_id in seen:
                continue
            seen.add(event_id)
            event["_event_id"], event["_event_time"] = event_id, event_time
            event["_ingested_at"] = datetime.now(UTC)
            event["_topic"], event["_partition"] = message.topic(), message.partition()
            event["_offset"] = message.offset()
            rows.append(event)
        if len(rows) >= WRITE or read == count:
            dead.flush()
            table.append(pa.Table.from_pylist(rows, schema=schema))
            consumer.commit()
            rows = []
    consumer.close()
    clock.report(count)


def levada(bootstrap: str, topic: str, count: int, folder: Path) -> None:
    """A sink as it runs: check, rules, ids, dedupe, Iceberg commits with offsets; SQL catalog on this disk."""
    pa.set_memory_pool(pa.jemalloc_memory_pool())
    pipeline = parse_pipeline(ENTRY, topic)
    kafka = KafkaSettings(bootstrap=bootstrap, protocol="PLAINTEXT")
    catalog = lake.Catalog(lake.CATALOG, uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
    clock = Clock()
    with Session(Settings(kafka=kafka, pipeline=topic), pipeline, catalog) as session:
        session.start()
        clock.start()
        while sum((session._reached | session._buffer.reached).values()) < count:
            session.step()
        session.commit()
    clock.report(count)
    rows = catalog.load_table(pipeline.table).scan(selected_fields=("_event_id",)).to_arrow()
    assert len(rows) == len(set(rows["_event_id"].to_pylist())) == count


def quix(bootstrap: str, topic: str, count: int, folder: Path) -> None:
    """quixstreams, as its documentation has it: a typed topic, a filter, a batching sink that writes Parquet."""
    from quixstreams import Application  # type: ignore[import-not-found,unused-ignore]
    from quixstreams.sinks import BatchingSink  # type: ignore[import-not-found,unused-ignore]

    clock, written = Clock(), 0

    class ParquetSink(BatchingSink):  # type: ignore[misc,unused-ignore]
        def write(self, batch: Any) -> None:
            nonlocal written
            rows = [item.value for item in batch]
            pq.write_table(
                pa.Table.from_pylist(rows),
                folder / f"{batch.partition}-{batch.start_offset}.parquet",
                compression="zstd",
            )
            written += len(rows)
            if written >= count:
                application.stop()

    application = Application(
        broker_address=bootstrap,
        consumer_group=f"bench-{folder.name}",
        auto_offset_reset="earliest",
        commit_every=BATCH,
        auto_create_topics=False,
        loglevel="ERROR",
    )
    frame = application.dataframe(application.topic(topic, value_deserializer="json"))

    def fit(event: dict[str, Any]) -> bool:
        clock.start()
        return _fits(event)

    frame.filter(fit).sink(ParquetSink())
    application.run()
    clock.report(written)


if __name__ == "__main__":
    way, bootstrap, topic, count, folder = sys.argv[1:]
    ways = {"floor": floor, "bare": bare, "naive": naive, "levada": levada, "quixstreams": quix}
    ways[way](bootstrap, topic, int(count), Path(folder))
