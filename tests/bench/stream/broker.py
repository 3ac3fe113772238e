"""One real Kafka broker for the bench, from the jars of the image that the chart runs; and the topic that all read.

librdkafka's mock cluster will not do: it names as its controller a node that it does not have, so admin calls wait for
it in vain (quixstreams makes some), it holds 5 MB of a partition, and other clients than librdkafka's cannot use it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.cluster.ingest.brokers import AS_DEPLOYED

from .consumers import PARTITIONS
from .peers import OTHER_CORE, ROOT, jars

_START_SECONDS = 60.0


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return found


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Its address. It has the core that nothing is measured on."""
    libraries = jars(ROOT / "images" / "kafka" / "pom.xml")
    clients, controller = (f"127.0.0.1:{port}" for port in free_ports(2))
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{clients},CONTROLLER://{controller}",
        "log.dirs": str(folder / "data"),
        "num.partitions": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
    }
    properties = folder / "server.properties"
    properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    java = ["java", *AS_DEPLOYED, "-cp", f"{libraries}/*"]
    format_ = ["kafka.tools.StorageTool", "format", "--cluster-id=bbbbbbbbbbbbbbbbbbbbbA", "--config", str(properties)]
    subprocess.run([*java, *format_], check=True, capture_output=True, timeout=_START_SECONDS)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(OTHER_CORE), *java, "kafka.Kafka", str(properties)], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                AdminClient({"bootstrap.servers": clients, "log_level": 0}).list_topics(timeout=2)
                break
            except KafkaException:
                said = (folder / "log").read_text()[-3000:]
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
        yield clients
    finally:
        process.kill()
        process.wait()


def create(bootstrap: str, topic: str, partitions: int) -> None:
    admin = AdminClient(
        {"bootstrap.servers": bootstrap, "log_level": 0}
    )  # A client without a name dies with its work undone.
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)


def fill(bootstrap: str, topic: str, events: int) -> None:
    """Make a topic of events of about 200 bytes, with the collector's headers."""
    create(bootstrap, topic, len(PARTITIONS))
    producer = Producer(
        {"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 50, "batch.size": 1_000_000}
    )
    random = np.random.default_rng(7)
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for number in range(events):
        amounts = random.random(2)
        event = {
            "order_id": f"{number:08x}-{number * 7919 % 65536:04x}-4b1c-9f3e-{number * 104729 % 2**48:012x}",
            "user_id": f"user-{number % 5000}",
            "amount": round(amounts[0] * 1000, 2),
            "quantity": number % 10 + 1,
            "product": ("iu_ticket", "cp_ticket", "ee_ticket")[number % 3],
            "paid": number % 2 == 0,
            "score": amounts[1],
            "note": "as ordered by the customer",
        }
        headers = [("event-id", f"{number:032x}"), ("event-time", now), ("pipeline", topic), ("schema", "1")]
        while True:
            try:
                producer.produce(topic, json.dumps(event), event["user_id"], number % len(PARTITIONS), headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0


def machine() -> str:
    """What a figure needs to be read: date, cores, load."""
    load = "/".join(f"{each:.1f}" for each in os.getloadavg())
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load {load}"
