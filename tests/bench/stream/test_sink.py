"""What carrying one event from Kafka to the lake costs, as ratios to a floor and to what others take.

Method: one real broker on one core, filled by a producer; on another core one consumer process a way, all of its
threads pinned to it, rounds of all ways in turn; user plus system time of the process from the first event to the last
one kept. CPU time moves far less with the neighbours than events a second.
The floor keeps values only and checks nothing but that each message is one object; the sink checks types and rules,
keeps ids, times and places, drops duplicates and commits rows and offsets to Iceberg. `naive` does the same work
plainly, but for what a kill does to it; `bare` and quixstreams check rules only and keep values only, as Parquet.
Kafka Connect, Spark and Flink write Iceberg; what each does less is told where it is: connect.py, spark.py, flink.py.
Their JVMs carry the whole topic once before it is measured, in the same process, so that neither their start nor the
compilation of their code counts; the start of the connector, query or job that is measured does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from . import connect, flink, peers, spark
from .broker import create, machine
from .conftest import EVENTS, TOPIC

ROUNDS = int(os.environ.get("LEVADA_BENCH_ROUNDS", "3"))
QUIX = ("quixstreams==3.24.0", "pyarrow", "orjson", "numpy", "msgspec", "pydantic-settings", "structlog", "sqlglot",
        "pyyaml", "pyiceberg", "prometheus-client", "sqlalchemy")  # fmt: skip
_SECONDS = 400.0

Way = Callable[[str, str, int, Path], dict[str, peers.Found]]


def _python(
    way: str, interpreter: str, bootstrap: str, topic: str, events: int, folder: Path
) -> dict[str, peers.Found]:
    module = [interpreter, "-m", "tests.bench.stream.consumers"]
    done = subprocess.run(
        [*peers.PINNED, *module, way, bootstrap, topic, str(events), str(folder)],
        cwd=peers.ROOT, env={**os.environ, "PYTHONPATH": f"{peers.ROOT}/src:{peers.ROOT}"},
        capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {way: json.loads(done.stdout.strip().splitlines()[-1])}


def _quixstreams(bootstrap: str, topic: str, events: int, folder: Path) -> dict[str, peers.Found]:
    return _python("quixstreams", peers.python("quixstreams", QUIX), bootstrap, topic, events, folder)


def _ways() -> tuple[dict[str, Way], dict[str, Way]]:
    """Ours, which must work, and others', which may be missing here."""
    ours: dict[str, Way] = {way: partial(_python, way, sys.executable) for way in ("floor", "levada", "naive", "bare")}
    return ours, {
        "quixstreams": _quixstreams, "connect": connect.measure, "spark": spark.measure, "flink": flink.measure,
    }  # fmt: skip


def test_cpu_of_an_event(filled: str) -> None:
    ours, others = _ways()
    costs: dict[str, list[float]] = {}
    reasons: dict[str, str] = {}
    print(f"\n{machine()}")
    for number in range(ROUNDS):
        for way, measure in (ours | others).items():
            if way in reasons:
                continue
            try:
                with tempfile.TemporaryDirectory(prefix="levada-bench-") as folder:
                    found = measure(filled, TOPIC, EVENTS, Path(folder))
            except (AssertionError, subprocess.TimeoutExpired, httpx.HTTPError, peers.LeftOutError) as error:
                if way in ours:
                    raise
                reasons[way] = str(error).strip().splitlines()[-1]
                continue
            for name, each in found.items():
                costs.setdefault(name, []).append(each["cpu"] / EVENTS * 1e6)
                print(f"  round {number + 1} {name:<12} {costs[name][-1]:6.2f} µs, {each['wall']:.1f} s, {machine()}")
    medians = {way: statistics.median(values) for way, values in costs.items()}
    print(f"CPU microseconds an event of about 200 bytes, {EVENTS} events, median of {ROUNDS} rounds (min to max):")
    for way, values in costs.items():
        rate = 1e3 / medians[way]
        print(
            f"  {way:<12} {medians[way]:6.2f}  ({min(values):.2f} to {max(values):.2f})  {rate:6.0f}k events/s a core"
            f"  {medians[way] / medians['levada']:6.2f} of levada"
        )
    for way, reason in reasons.items():
        print(f"  {way:<12} left out: {reason}")


def test_from_acknowledged_to_queryable(bootstrap: str, tmp_path: Path) -> None:
    """How long an event takes until a query of the table finds it: the commit interval plus two seconds at most."""
    from tests.unit.stream.rig import Rig

    create(bootstrap, "fresh", 4)
    rig = Rig(bootstrap, tmp_path, "fresh")
    rig.declare({"fields": {"n": {"type": "long"}}, "stream": {"commitEvery": "2s"}})
    waits = _waits(rig, seconds=20)
    p50, p99 = np.percentile(waits, [50, 99])
    print(f"\nFrom acknowledged to queryable, commitEvery 2s, {len(waits)} events: p50 {p50:.2f} s, p99 {p99:.2f} s")
    print(machine())
    assert p99 <= 2 + 2


def _waits(rig: Any, seconds: float) -> list[float]:
    """A steady trickle of events, a sink, and a reader that looks at the table all the time."""
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
