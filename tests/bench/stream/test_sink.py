"""What carrying one event from Kafka to the lake costs, as ratios to a floor and to what one would write first.

Method: librdkafka's mock cluster in one process, or the Kafka that LEVADA_BENCH_BOOTSTRAP names, filled by a producer;
one consumer process a way, all of its threads pinned to one core, rounds of all ways in turn; user plus system time of
the process from the first event to the last one kept. CPU time moves far less with the neighbours than events a second.
The floor keeps values only and checks nothing but that each message is one object; the sink checks types and rules,
keeps ids, times and places, drops duplicates and commits rows and offsets to Iceberg. `naive` does the same work
plainly, but for what a kill does to it; `bare` and quixstreams check rules only and keep values only, as Parquet.
The mock cluster holds too few events for more than one commit, and a process's first one costs most; and quixstreams
asks it for what it does not know. Figures to publish come from a real Kafka.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from .consumers import PARTITIONS

ROOT = Path(__file__).parents[3]
# The mock cluster keeps 5 MB of a partition; a real one is asked for more.
EVENTS = int(os.environ.get("LEVADA_BENCH_EVENTS", "400000" if "LEVADA_BENCH_BOOTSTRAP" in os.environ else "80000"))
ROUNDS = int(os.environ.get("LEVADA_BENCH_ROUNDS", "3"))
TOPIC = f"bench-{os.getpid()}"
QUIX = "quixstreams==3.24.0"


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    """A topic with EVENTS events of about 200 bytes, with the collector's headers."""
    given = os.environ.get("LEVADA_BENCH_BOOTSTRAP")
    host = None
    if given is None:
        host = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
        broker = next(iter(host.list_topics(timeout=10).brokers.values()))
        given = f"{broker.host}:{broker.port}"
    producer = Producer(
        {"bootstrap.servers": given, "compression.type": "lz4", "linger.ms": 50, "batch.size": 1_000_000}
    )
    if host is None:
        admin = AdminClient({"bootstrap.servers": given})
        admin.create_topics([NewTopic(TOPIC, len(PARTITIONS), 1)])[TOPIC].result(20)
    producer.list_topics(TOPIC, timeout=10)
    random = np.random.default_rng(7)
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for number in range(EVENTS):
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
        headers = [("event-id", f"{number:032x}"), ("event-time", now), ("pipeline", TOPIC), ("schema", "1")]
        while True:
            try:
                producer.produce(TOPIC, json.dumps(event), event["user_id"], number % len(PARTITIONS), headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    yield given
    del host


def measure(way: str, bootstrap: str, python: str = sys.executable) -> dict[str, float]:
    folder = tempfile.mkdtemp(prefix="levada-bench-")
    try:
        done = subprocess.run(
            [
                "taskset",
                "--cpu-list",
                str(max(os.sched_getaffinity(0))),
                python,
                "-m",
                "tests.bench.stream.consumers",
                way,
                bootstrap,
                TOPIC,
                str(EVENTS),
                folder,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return found
    finally:
        shutil.rmtree(folder)


def quixstreams() -> tuple[str | None, str]:
    """A Python that has quixstreams, in an environment apart from all of ours; or why there is none."""
    folder = (
        Path(os.environ.get("LEVADA_BENCH_ENVIRONMENTS", Path.home() / ".cache" / "levada" / "bench")) / "quixstreams"
    )
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return str(python), ""
    needed = [QUIX, "pyarrow", "orjson", "numpy", "msgspec", "pydantic-settings", "structlog", "sqlglot", "pyyaml",
              "pyiceberg", "prometheus-client", "sqlalchemy"]  # fmt: skip
    try:
        for command in (["uv", "venv", str(folder)], ["uv", "pip", "install", "--python", str(python), *needed]):
            subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, text=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        return None, str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
    (folder / "ready").touch()
    return str(python), ""


def test_cpu_of_an_event(bootstrap: str) -> None:
    ways = dict.fromkeys(("floor", "levada", "naive", "bare"), sys.executable)
    python, reason = quixstreams()
    if python is not None:
        ways["quixstreams"] = python
    figures: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, interpreter in list(ways.items()):
            try:
                found = measure(way, bootstrap, interpreter)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                if way != "quixstreams":
                    raise
                reason = str(error).strip().splitlines()[-1]
                del ways[way], figures[way]
                continue
            figures[way].append(found["cpu"] / found["events"] * 1e6)
    medians = {way: statistics.median(values) for way, values in figures.items()}
    print(f"\nCPU microseconds an event of about 200 bytes, {EVENTS} events, median of {ROUNDS} rounds (min to max):")
    for way, values in figures.items():
        rate = 1e3 / medians[way]
        print(
            f"  {way:<12} {medians[way]:6.2f}  ({min(values):.2f} to {max(values):.2f})  {rate:6.0f}k events/s a core"
        )
    if "quixstreams" not in medians:
        print(f"  quixstreams  left out: {reason}")
    print(f"  floor / levada = {medians['floor'] / medians['levada']:.2f}")
    for way in medians.keys() - {"floor", "levada"}:
        print(f"  {way} / levada = {medians[way] / medians['levada']:.2f}")


def test_from_acknowledged_to_queryable(tmp_path: Path) -> None:
    """How long an event takes until a query of the table finds it: the commit interval plus two seconds at most."""
    from tests.unit.stream.rig import Rig

    host = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(host.list_topics(timeout=10).brokers.values()))
    rig = Rig(f"{broker.host}:{broker.port}", tmp_path, "fresh")
    rig.declare({"fields": {"n": {"type": "long"}}, "stream": {"commitEvery": "2s"}})
    waits = _waits(rig, seconds=20)
    p50, p99 = np.percentile(waits, [50, 99])
    print(f"\nFrom acknowledged to queryable, commitEvery 2s, {len(waits)} events: p50 {p50:.2f} s, p99 {p99:.2f} s")
    assert p99 <= 2 + 2
    del host


def _waits(rig: Any, seconds: float) -> list[float]:
    """A steady trickle of events, a sink, and a reader that looks at the table all the time."""
    from levada.stream.source import Source

    Source.topic = lambda _: rig.topic  # type: ignore[method-assign]
    sent: dict[str, float] = {}
    waits: list[float] = []
    with rig.session() as session:
        session.start()
        begin, number = time.monotonic(), 0
        while time.monotonic() - begin < seconds or len(waits) < number:
            if time.monotonic() - begin < seconds:
                for _ in range(20):
                    rig.send({"n": number}, number % 4, event_id=f"e{number}")
                    sent[f"e{number}"] = time.monotonic()
                    number += 1
            before = session._table.rows
            session.step()
            if session._table.rows != before:
                found = rig.catalog().load_table(rig.pipeline.table).scan(selected_fields=("_event_id",)).to_arrow()
                now = time.monotonic()
                waits += [now - sent.pop(event) for event in found["_event_id"].to_pylist() if event in sent]
    return waits
