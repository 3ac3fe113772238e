"""Kafka Connect with Iceberg's own sink, on one core.

One standalone worker with one task. Its settings are those that carry most: values from JSON without schemas, keys and
headers left as bytes, 10,000 records a poll, fetches of megabytes, and a commit every 10 s as the sink's. It writes the
values into a table of the values alone: no rules, types only as far as they convert, no ids, times or places, nothing
dropped twice. Its rows and offsets are one commit, so it is exactly-once from Kafka on.
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from . import broker, peers

COMMIT_SECONDS = 10
_SECONDS = 400.0


def measure(bootstrap: str, topic: str, events: int, folder: Path) -> dict[str, peers.Found]:
    """The whole topic once to warm the JVM up, then by another connector, from its creation to the last row committed.

    Raises:
        LeftOutError: there is no Connect here.
    """
    libraries = peers.jars(peers.POMS / "connect.xml")
    (port,) = broker.free_ports(1)
    worker = folder / "worker.properties"
    settings = {
        "bootstrap.servers": bootstrap,
        "listeners": f"http://127.0.0.1:{port}",
        "offset.storage.file.filename": str(folder / "offsets"),
        "key.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
        "header.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        "plugin.discovery": "service_load",
        # With nothing left to read a task sleeps until the next one, and hears only then that it is to commit.
        "offset.flush.interval.ms": "5000",
    }
    worker.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    peers.make_tables(folder, "warm", "main", places=False)
    main = ["java", "-Xmx2g", "-cp", f"{libraries}/*", "org.apache.kafka.connect.cli.ConnectStandalone", str(worker)]
    with peers.process(main, folder) as connect, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as api:
        connect.wait(lambda: _answers(api), 60, "Connect's API")
        _create(api, bootstrap, topic, folder, "warm")
        connect.wait(lambda: peers.rows(folder, "warm") >= events, _SECONDS, "all rows of the warm-up")
        api.delete(f"/connectors/{_name(folder, 'warm')}").raise_for_status()
        cpu, wall = peers.cpu_seconds(connect.pid), time.perf_counter()
        _create(api, bootstrap, topic, folder, "main")
        connect.wait(lambda: peers.rows(folder, "main") >= events, _SECONDS, "all rows")
        cpu, wall = peers.cpu_seconds(connect.pid) - cpu, time.perf_counter() - wall
    assert peers.rows(folder, "main") == peers.distinct(folder, "main", "order_id") == events
    return {"connect": {"cpu": cpu, "wall": wall}}


def _name(folder: Path, table: str) -> str:
    """A connector's name, new in every round: it is its group's too, and the broker keeps how far that has read."""
    return f"{table}-{folder.name}"


def _create(api: httpx.Client, bootstrap: str, topic: str, folder: Path, table: str) -> None:
    control = f"control-{_name(folder, table)}"
    broker.create(bootstrap, control, 1)
    config = {
        "connector.class": "org.apache.iceberg.connect.IcebergSinkConnector",
        "tasks.max": "1",
        "topics": topic,
        "consumer.override.auto.offset.reset": "earliest",
        "consumer.override.max.poll.records": "10000",
        "consumer.override.max.partition.fetch.bytes": "8388608",
        "consumer.override.fetch.min.bytes": "1048576",
        "iceberg.tables": f"events.{table}",
        "iceberg.control.topic": control,
        "iceberg.control.commit.interval-ms": str(COMMIT_SECONDS * 1000),
        "iceberg.kafka.bootstrap.servers": bootstrap,
        "iceberg.catalog": "lake",
        "iceberg.catalog.type": "jdbc",
        "iceberg.catalog.uri": f"jdbc:sqlite:{folder}/catalog.db",
        "iceberg.catalog.jdbc.schema-version": "V1",
        "iceberg.catalog.warehouse": f"file://{folder}/warehouse",
    }
    answer = api.post("/connectors", json={"name": _name(folder, table), "config": config})
    assert answer.status_code == 201, answer.text


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/connectors").status_code == 200
    except httpx.TransportError:
        return False
