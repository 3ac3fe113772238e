"""What durability costs: the collector beside the same stack that forgets, and beside what one would write first.

Method: one server process at a time on core 0; one JSON event of 150 bytes a request, keep-alive, API key and metrics
on; rounds of all servers in turn. Kafka is librdkafka's mock cluster in a process of its own, which costs next to
nothing, on core 1 with wrk, so the servers' own rates show; or three real brokers with the chart's settings, which run
where there is room, as wrk does then: rates are what all of them leave each other. The brokers' JVMs carry a minute of
load before anything is measured, and another at half of the best rate before the tail: what Java compiles for a few
records a request it has not compiled for many. CPU time is user plus system of the server process from /proc. The tail
is measured at half of the best rate by a client that keeps its own time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from levada.ingest import topics
from levada.pipeline import parse_pipeline
from tests.bench.openloop import tail
from tests.cluster.ingest.brokers import AS_DEPLOYED, running
from tests.debian import need
from tests.unit.ingest.collecting import API_KEY, free_port
from tests.unit.ingest.kafka import MockKafka

ROUNDS, TAIL_ROUNDS, SECONDS, CONNECTIONS = 3, 5, 3, (64, 256)
WARM_UP_SECONDS = 60
SERVER_CORE, CLIENT_CORE = 0, 1
SERVERS = ("durable", "forgetful", "naive")
EVENT = {"n": 7, "user": "user-000123", "a": 1.25, "b": 3500.0, "c": "x" * 60, "d": True}
FIELDS = {
    "n": {"type": "long", "rule": "n BETWEEN 0 AND 100"},
    "user": {"type": "string"},
    "a": {"type": "double"},
    "b": {"type": "double"},
    "c": {"type": "string"},
    "d": {"type": "boolean"},
}
APPS = Path(__file__).with_name("apps.py")


def pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Kafka:
    """A Kafka with the topic bench."""

    reached: dict[str, str]
    """How, as a process is told."""
    client_cores: str
    """Where its clients run, but for the server, as taskset is told."""
    warm_up: float
    """Seconds of load before anything is measured."""


@pytest.fixture(params=["mock", "three brokers"])
def kafka(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kafka]:
    if request.param == "mock":
        mock = MockKafka()
        mock.make_topic("bench")
        pin(mock._process.pid, CLIENT_CORE)
        reached = {"LEVADA_KAFKA__BOOTSTRAP": mock.bootstrap, "LEVADA_KAFKA__PROTOCOL": "PLAINTEXT"}
        yield Kafka(reached, f"{CLIENT_CORE}", 1)
        mock.kill()
        return
    (tmp_path / "kafka").mkdir()
    for brokers in running(tmp_path / "kafka", {"ingest": {"kafka": {"replicas": 3}}}, jvm=AS_DEPLOYED):
        declared = {"bench": parse_pipeline({"fields": FIELDS, "topic": {"partitions": 3}}, "bench")}
        topics.apply(brokers.settings("admin"), declared, brokers.users(), timeout=60, report=lambda _: None)
        reached = {
            "LEVADA_KAFKA__BOOTSTRAP": brokers.bootstrap,
            "LEVADA_KAFKA__CREDENTIALS": str(brokers.folder / "credentials" / "collector"),
        }
        yield Kafka(reached, f"{SERVER_CORE},{CLIENT_CORE}", WARM_UP_SECONDS)


@contextmanager
def serving(name: str, folder: Path, kafka: Kafka) -> Iterator[tuple[int, int]]:
    """Pid and port of one of the servers."""
    port, health = free_port(), free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "LEVADA_PIPELINES": str(folder),
        **kafka.reached,
        "LEVADA_COLLECTOR__PORT": str(port),
        "LEVADA_COLLECTOR__API_KEYS_FILE": str(folder / "keys"),
        "LEVADA_HEALTH_PORT": str(health),
    }
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, str(APPS), name]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.post(f"http://127.0.0.1:{port}/v1/bench/events", json=EVENT, headers=KEY).status_code == 202:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


KEY = {"Authorization": f"Bearer {API_KEY}"}


def wrk(port: int, connections: int, seconds: float, folder: Path, cores: str) -> tuple[float, int]:
    """Requests a second, and how many there were."""
    need("wrk", "wrk")
    script = folder / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = [[{json.dumps(EVENT)}]]\n'
        f'wrk.headers["Content-Type"] = "application/json"\nwrk.headers["Authorization"] = "Bearer {API_KEY}"\n'
    )
    done = subprocess.run(
        ["taskset", "-c", cores, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script),
         f"http://127.0.0.1:{port}/v1/bench/events"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "Non-2xx" not in done, done
    return float(re.search(r"Requests/sec: +(\S+)", done)[1]), int(re.search(r"(\d+) requests in", done)[1])  # type: ignore[index]


def request() -> bytes:
    """One event as it is posted."""
    body = json.dumps(EVENT).encode()
    head = (
        f"POST /v1/bench/events HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {API_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_what_durability_costs(kafka: Kafka, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps({"fields": FIELDS}))
    sha256 = hashlib.sha256(API_KEY.encode()).hexdigest()
    (tmp_path / "keys").write_text(json.dumps({"bench": {"sha256": sha256, "pipelines": ["*"]}}))
    rates: dict[tuple[str, int], list[float]] = {}
    costs: dict[tuple[str, int], list[float]] = {}
    with serving("durable", tmp_path, kafka) as (_, port):
        wrk(port, CONNECTIONS[-1], kafka.warm_up, tmp_path, kafka.client_cores)
    for _ in range(ROUNDS):
        for name in SERVERS:
            with serving(name, tmp_path, kafka) as (pid, port):
                wrk(port, CONNECTIONS[0], 1, tmp_path, kafka.client_cores)
                for connections in CONNECTIONS:
                    begin = cpu_seconds(pid)
                    rate, count = wrk(port, connections, SECONDS, tmp_path, kafka.client_cores)
                    rates.setdefault((name, connections), []).append(rate)
                    costs.setdefault((name, connections), []).append((cpu_seconds(pid) - begin) / count * 1e6)
    print(f"\n{'':<12}{'connections':>12}{'events/s':>12}{'CPU µs/event':>14}   median of {ROUNDS} rounds (min to max)")
    for (name, connections), found in rates.items():
        cost = costs[name, connections]
        print(
            f"{name:<12}{connections:>12}{statistics.median(found):>12.0f}{statistics.median(cost):>14.1f}"
            f"   ({min(found):.0f} to {max(found):.0f}; {min(cost):.1f} to {max(cost):.1f})"
        )
    for connections in CONNECTIONS:
        durable, forgetful, naive = (statistics.median(rates[name, connections]) for name in SERVERS)
        spent, spared, wasted = (statistics.median(costs[name, connections]) for name in SERVERS)
        print(
            f"{connections} connections: durable / forgetful {durable / forgetful:.2f} by rate, {spared / spent:.2f} "
            f"by CPU; durable / naive {durable / naive:.1f} by rate, {wasted / spent:.1f} by CPU"
        )
    best, forgetting, worst = (
        max(statistics.median(rates[name, connections]) for connections in CONNECTIONS) for name in SERVERS
    )
    print(
        f"each at its best, by rate: durable / forgetful {best / forgetting:.2f} (goal 0.9), "
        f"durable / naive {best / worst:.1f} (goal 12)"
    )
    half = partial(tail, request=request(), rate=best / 2, connections=CONNECTIONS[-1], cores=kafka.client_cores)
    with serving("durable", tmp_path, kafka) as (_, port):
        half(port, seconds=kafka.warm_up)
        tails = [half(port, seconds=5) for _ in range(TAIL_ROUNDS)]
    p50, p99, undisturbed, disturbed = (statistics.median(column) for column in zip(*tails, strict=True))
    print(
        f"durable at {best / 2:.0f} events/s, half of its best: p50 {p50:.1f} ms, p99 {p99:.1f} ms (goal 25), "
        f"rounds {min(each.p99 for each in tails):.1f} to {max(each.p99 for each in tails):.1f}; without the "
        f"{disturbed:.1%} under way while the client did not run p99 {undisturbed:.1f} ms"
    )
