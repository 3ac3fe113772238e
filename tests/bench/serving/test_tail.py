"""How long the slowest predictions take at half of the best rate.

Method: the predictor on core 0, a client that keeps its own time on core 1 with 64 keep-alive connections; rounds of
all variants in turn, and no peers beside them: whatever wakes up on core 0 holds up what is measured. A few
milliseconds a second in which the machine does not run the client are a p99 of their own: *undisturbed* leaves out the
requests that were under way then. `hello`, the least that ASGI can answer, is asked at the rate of `linear`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.bench.openloop import Tail, tail
from tests.unit.ingest.kafka import MockKafka
from tests.unit.serving.conftest import mlflow_server

from .load import CLIENT_CORE, CONNECTIONS, Measured, wrk
from .models import Trained, train
from .servers import Server, predictor, started

ROUNDS = int(os.environ.get("LEVADA_BENCH_ROUNDS", "5"))
SECONDS, GOAL_MS = 5, 3.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Server]]:
    (tmp_path / "models").mkdir()
    models = train(tmp_path / "models")
    linear = models["linear"]
    with ExitStack() as running:
        broker = MockKafka()
        running.callback(broker.kill)
        broker.make_topic("things.predictions")
        variants: dict[str, tuple[Trained, dict[str, Any]]] = {
            "linear": (linear, {}),
            "forest": (models["forest"], {}),
            "linear, shadow": (linear, {"shadow": True}),
            "linear, logged": (linear, {"kafka": broker.bootstrap}),
        }
        found = {}
        for name, (model, chosen) in variants.items():
            registry = running.enter_context(mlflow_server())
            found[name] = running.enter_context(predictor(model, tmp_path / name, registry, **chosen))
        found["hello"] = running.enter_context(started("hello", linear, tmp_path / "hello"))
        yield found


@pytest.mark.row(53, process=True, part="the tail")
def test_tail_at_half_of_the_best_rate(servers: dict[str, Server], tmp_path: Path) -> None:
    rates = {}
    for name, server in servers.items():
        measured = Measured(server, 1)
        wrk(measured, SECONDS, tmp_path)
        rates[name] = measured.rate / 2
    # Its own best rate was its warm-up.
    rates["hello"] = rates["linear"]
    found: dict[str, list[Tail]] = {name: [] for name in servers}
    for _ in range(ROUNDS):
        for name, server in servers.items():
            port, request = urlsplit(server.url).port, server.request(1)
            assert port is not None
            once = tail(
                port, request, rate=rates[name], seconds=SECONDS, connections=2 * CONNECTIONS, cores=str(CLIENT_CORE)
            )
            found[name].append(once)
    print(f"\n{ROUNDS} rounds of {SECONDS} s: median (min to max); goal for p99: {GOAL_MS:g} ms")
    print("| server | requests/s | p50 ms | p99 ms | p99 ms, undisturbed | disturbed |\n|---|--:|--:|--:|--:|--:|")
    for name, rounds in found.items():
        p50s, p99s, undisturbed, disturbed = zip(*rounds, strict=True)
        columns = [f"{rates[name]:.0f}", f"{statistics.median(p50s):.2f}", _spread(p99s), _spread(undisturbed)]
        print("|", " | ".join([name, *columns, f"{statistics.median(disturbed):.1%}"]), "|")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
