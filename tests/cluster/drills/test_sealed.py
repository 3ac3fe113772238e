"""Sensitive values of many orders, searched for byte by byte wherever the line keeps or shows anything."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from hmac import digest
from pathlib import Path
from typing import Any

import pytest
from argon2.low_level import Type, verify_secret

from tests.unit.examples.orders.visitor import Visitor

from ..conftest import Line, wait_for
from .conftest import as_admin, settled

ORDERS = int(os.environ.get("LEVADA_ORDERS", "40"))
LARGE = 5
"""Every fifth event is suspicious, and set aside for review."""

TOPICS = """
import json, sys
from confluent_kafka import Consumer, TopicPartition
from levada.config import settings
consumer = Consumer({**settings().kafka.client(), "group.id": "unused", "enable.auto.commit": False})
found = []
for topic in consumer.list_topics(timeout=10).topics.values():
    for part in topic.partitions if topic.topic.partition(".")[0] in sys.argv[1:] else ():
        offset, end = consumer.get_watermark_offsets(TopicPartition(topic.topic, part), timeout=10)
        consumer.assign([TopicPartition(topic.topic, part, offset)])
        while offset < end:
            message = consumer.poll(30)
            offset = message.offset() + 1
            parts = [message.value(), message.key(), *(value for _, value in message.headers())]
            found.append([topic.topic, *((part or b"").decode("latin-1") for part in parts)])
print(json.dumps(found))
"""
TABLE = """
import json
from levada import lake
from levada.config import settings
from levada.pipeline import load_pipeline
config = settings()
table = lake.catalog(config).load_table(load_pipeline(config.pipelines, config.pipeline).table)
print(json.dumps(table.scan().to_arrow().to_pylist(), default=str))
"""
DUMP = "PGPASSWORD=$(cat /etc/levada/credentials/postgres/password) pg_dumpall"


@dataclass(frozen=True)
class Sent:
    """What was given to the line, and what must not be found in it."""

    begin: float
    """When, in seconds since 1970."""
    vault: list[dict[str, Any]]
    orders: list[dict[str, str]]

    @property
    def secrets(self) -> list[str]:
        """Values that are long enough to occur nowhere by chance."""
        return [value for event in self.vault for value in (event["code"], event["card"])]


def _post(line: Line, event: dict[str, Any], key: str) -> int:
    """Post until the collector has room for one more digest."""
    headers = {"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": key}
    while True:
        answer = line.post("vault", json=event, headers=headers)
        assert not set(re.findall(r"\d{16}", answer.text))
        if answer.status_code != 429:
            return answer.status_code
        time.sleep(float(answer.headers["Retry-After"]))


def _order(url: str, order: dict[str, str]) -> None:
    """Place one order on the page, pressing the button until it is placed."""
    visitor = Visitor(url)
    visitor.get()
    deadline = time.monotonic() + 120
    while (answer := visitor.post(order)).status_code != 303:
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline
        time.sleep(1)
    visitor.close()


def _letters(dice: random.Random) -> str:
    return "".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=12))


@pytest.fixture(scope="module")
def sent(line: Line) -> Sent:
    seed, run = random.randrange(10**6), uuid.uuid4().hex
    print(f"seed {seed}")
    dice = random.Random(seed)
    vault = [
        {
            "owner": _letters(dice),
            "code": str(dice.randrange(10**15, 10**16)),
            "card": str(dice.randrange(10**15, 10**16)),
            "amount": 5000 if number % LARGE == 0 else 5,
        }
        for number in range(ORDERS)
    ]
    # Names and ids without digits, so that a PIN cannot be found in them by chance; two users have one PIN.
    pins = [f"{dice.randrange(10_000):04}" for _ in range(ORDERS - 2)] + ["1906"] * 2
    orders = [
        {"name": "Grace Hopper", "user_id": _letters(dice), "password": pin, "product": "iu_ticket"} for pin in pins
    ]
    before = settled(line, "vault"), settled(line, "orders")
    begin = time.time()
    with ThreadPoolExecutor(4) as pool:
        placed = [pool.submit(_post, line, event, f"{run}-{number}") for number, event in enumerate(vault)]
        assert {each.result() for each in placed} == {202}
        wrong = [{**event, "code": event["code"] + "x"} for event in vault[:5]] + [
            {**event, "surplus": event["code"]} for event in vault[:5]
        ]
        refused = [pool.submit(_post, line, event, f"{run}-wrong-{number}") for number, event in enumerate(wrong)]
        assert {each.result() for each in refused} == {422}
        url = line.target.url(line.target.name("orders"), 8080)
        for each in [pool.submit(_order, url, order) for order in orders]:
            each.result()
    print(f"{2 * ORDERS} events with a sensitive value in {time.time() - begin:.0f} s")
    large = sum(event["amount"] > 1000 for event in vault)
    wait_for(lambda: line.rows("vault") == before[0] + ORDERS - large, 60)
    wait_for(lambda: line.rows("orders") == before[1] + ORDERS, 60)
    return Sent(begin, vault, orders)


def places(line: Line) -> Iterator[tuple[str, str]]:
    """Everything that the line shows or that can be read out of it decoded, by its place."""
    for topic, *parts in as_admin(line, TOPICS, "vault", "orders"):
        yield f"topic {topic}", "\0".join(parts)
    for pipeline in ("vault", "orders"):
        sink = "deployment/" + line.target.name(f"sink-{pipeline}")
        yield f"table {pipeline}", line.exec(sink, "python3", "-c", TABLE, container="sink")
    yield "PostgreSQL", line.exec("statefulset/" + line.target.name("postgres"), "sh", "-c", DUMP, container="postgres")
    for pod in line.target.objects("pods"):
        name = pod["metadata"]["name"]
        yield f"log of {name}", line.kubectl("logs", name, "--all-containers", "--prefix")
        if pod["status"]["phase"] == "Running" and "levada.io/scrape" in pod["metadata"]["labels"]:
            ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
            metrics = next(port["containerPort"] for port in ports if port["name"] == "metrics")
            path = pod["metadata"].get("annotations", {}).get("prometheus.io/path", "/metrics")
            proxy = f"/api/v1/namespaces/{line.target.namespace}/pods/{name}:{metrics}/proxy{path}"
            yield f"metrics of {name}", line.kubectl("get", "--raw", proxy)


def files_with(line: Line, since: float, needles: Path) -> list[str]:
    """Files below the cluster's folder, written since then, that hold one of the needles (a line each)."""
    assert line.target.cluster is not None
    search = ["grep", "--text", "--files-with-matches", "--fixed-strings", f"--file={needles}", "{}", "+"]
    done = subprocess.run(
        ["find", str(line.target.cluster.state), "-type", "f", "-newermt", f"@{since:.0f}", "-exec", *search],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.row(3, part="topics, tables, logs, metrics, volumes and every other file of the nodes")
def test_clear_values_are_nowhere(line: Line, sent: Sent, tmp_path: Path) -> None:
    secrets, owners = set(sent.secrets), {event["owner"] for event in sent.vault}
    seen: dict[str, set[str]] = {}
    for place, text in places(line):
        assert not secrets & set(re.findall(r"(?=(\d{16}))", text)), place
        seen.setdefault(place, set()).update(owners & set(re.findall(r"[a-z]{12}", text)))
    # The search finds what is there: what was not sensitive.
    assert seen["topic vault"] | seen["topic vault.review"] == owners
    assert len(seen["topic vault.review"]) == sum(event["amount"] > 1000 for event in sent.vault)
    assert seen["table vault"] == seen["topic vault"]
    # Volumes, logs, writable layers, whatever else the nodes and the control plane wrote since.
    needles = tmp_path / "needles"
    needles.write_text("\n".join(secrets))
    assert not files_with(line, sent.begin, needles)
    needles.write_text("events/vault")
    volumes = files_with(line, sent.begin, needles)
    assert any("/volumes/" in name for name in volumes), volumes  # the table's own files were among the searched
    print(f"{len(secrets)} values of 16 digits: not in {', '.join(sorted(seen))}, and in no file that was written")


@pytest.mark.row(3, part="PINs of orders")
@pytest.mark.row(4, part="orders placed on the page")
def test_pins_of_orders(line: Line, sent: Sent) -> None:
    rows = json.loads(
        line.exec("deployment/" + line.target.name("sink-orders"), "python3", "-c", TABLE, container="sink")
    )
    stored = {row["user_id"]: row for row in rows}
    pepper = line.target.secret("pepper", "pepper")
    key = digest(pepper.encode(), b"argon2id", sha256)
    begin, digests = time.process_time(), []
    for order in sent.orders:
        row = stored[order["user_id"]]
        assert {field: row[field] for field in ("name", "product")} == {f: order[f] for f in ("name", "product")}
        digests.append(row["password"])
        assert row["password"].startswith("$argon2id$v=19$m=32768,t=8,p=1$")
    for order, stored_digest in list(zip(sent.orders, digests, strict=True))[-2:]:
        assert verify_secret(
            stored_digest.encode(), digest(key, f"orders/password/{order['password']}".encode(), sha256), Type.ID
        )
    each = (time.process_time() - begin) / 2
    assert sent.orders[-1]["password"] == sent.orders[-2]["password"]
    assert len(set(digests)) == len(digests)
    print(f"a guess takes {each * 1000:.0f} ms of one core: {each * 10_000 / 2 / 60:.0f} min for half of all PINs")
    # What came to Kafka is one JSON object of these four fields; only the digest in it has digits.
    mine = {order["user_id"] for order in sent.orders}
    events = [json.loads(value) for _, value, *_ in as_admin(line, TOPICS, "orders")]
    mine_there = [event for event in events if event["user_id"] in mine]
    assert len(mine_there) == len(mine)
    for event in mine_there:
        assert event.keys() == {"name", "user_id", "password", "product"}
        assert event["password"] in digests
        assert not re.search(r"\d", event["name"] + event["user_id"] + event["product"])
