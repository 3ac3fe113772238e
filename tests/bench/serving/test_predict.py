"""What a prediction costs: the predictor beside the least that ASGI can answer, and beside what people use.

Method: each server a process on core 0, alone or with its helpers; wrk on core 1; keep-alive, 32 connections, rounds of
all servers in turn after a warm-up. Ours is the real process, with API keys and metrics on; the others ask for no key.
CPU time is user plus system of the process and all that it started, from /proc: it moves far less with the neighbours
than requests a second. The start is from the process's beginning to its first prediction. `hello` answers two bytes to
anything; `naive` is FastAPI that loads the model for each request.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.unit.ingest.kafka import MockKafka
from tests.unit.serving.conftest import mlflow_server

from .load import Measured, wrk
from .models import Trained, train
from .servers import Server, predictor, resident, started

ROUNDS = int(os.environ.get("LEVADA_BENCH_ROUNDS", "3"))
SECONDS = float(os.environ.get("LEVADA_BENCH_SECONDS", "3"))
GOALS = {"start": 1.5, "memory": 110.0}


def counter(server: Server, name: str) -> float:
    """One of a predictor's counters."""
    text = httpx.get(f"{server.health}/metrics").text
    return float(re.search(rf"^levada_{name}_total{{[^}}]*}} (\S+)", text, re.MULTILINE)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return train(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def servers(models: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """All of them, running; started one after the other."""
    folder = tmp_path_factory.mktemp("servers")
    peers = [name for name in ("mlflow", "mlserver") if name not in os.environ.get("LEVADA_BENCH_WITHOUT", "")]
    with ExitStack() as running:
        found = {
            kind: running.enter_context(started(kind, models["linear"], folder / kind)) for kind in ("hello", "naive")
        }
        for name, model in models.items():
            registry = running.enter_context(mlflow_server())
            found[f"levada {name}"] = running.enter_context(predictor(model, folder / name, registry))
            for peer in peers:
                found[f"{peer} {name}"] = running.enter_context(started(peer, model, folder / f"{peer}-{name}"))
        registry = running.enter_context(mlflow_server())
        found["levada linear, shadow"] = running.enter_context(
            predictor(models["linear"], folder / "shadow", registry, shadow=True)
        )
        broker = MockKafka()
        running.callback(broker.kill)
        broker.make_topic("things.predictions")
        registry = running.enter_context(mlflow_server())
        found["levada linear, logged"] = running.enter_context(
            predictor(models["linear"], folder / "logged", registry, kafka=broker.bootstrap)
        )
        yield found


@pytest.mark.row(53, process=True)
def test_cost_of_a_prediction(servers: dict[str, Server], tmp_path: Path) -> None:
    cases = {name: Measured(server, 1) for name, server in servers.items()}
    cases |= {
        f"{name}, 100 rows": Measured(server, 100) for name, server in servers.items() if name.endswith(" linear")
    }
    for measured in cases.values():
        wrk(measured, 1, tmp_path)
        measured.costs.clear(), measured.rates.clear(), measured.p50.clear(), measured.p99.clear()
    for _ in range(ROUNDS):
        for measured in cases.values():
            wrk(measured, SECONDS, tmp_path)
    print(f"\nload of the machine {os.getloadavg()[0]:.1f}; {ROUNDS} rounds of {SECONDS:g} s: median (min to max)")
    print("| server | CPU µs/request | requests/s | p50 ms | p99 ms | ÷ hello, CPU |\n|---|--:|--:|--:|--:|--:|")
    for name, measured in cases.items():
        print(
            f"| {name} | {measured.cost:.1f} ({min(measured.costs):.1f} to {max(measured.costs):.1f}) | "
            f"{measured.rate:.0f} ({min(measured.rates):.0f} to {max(measured.rates):.0f}) | "
            f"{statistics.median(measured.p50):.2f} | {statistics.median(measured.p99):.2f} | "
            f"{cases['hello'].cost / measured.cost:.2f} |"
        )
    goals = {("linear", "mlflow"): 40, ("linear", "mlserver"): 25, ("forest", "mlflow"): 200}
    print("\n| what | levada ÷ peer, CPU | by rate | goal |\n|---|--:|--:|--:|")
    for name, measured in cases.items():
        peer, _, what = name.partition(" ")
        ours = cases.get(f"levada {what}")
        if ours is not None and peer != "levada":
            goal = goals.get((what, peer), "")
            print(f"| {what}, {peer} | {measured.cost / ours.cost:.0f} | {ours.rate / measured.rate:.0f} | {goal} |")
    ours, hello, naive = cases["levada linear"], cases["hello"], cases["naive"]
    print(f"| linear, hello | {hello.cost / ours.cost:.2f} | {ours.rate / hello.rate:.2f} | 0.6 |")
    print(f"| linear, naive | {naive.cost / ours.cost:.0f} | {ours.rate / naive.rate:.0f} | |")
    shadowed = cases["levada linear, shadow"]
    print(f"| with a challenger in shadow | {ours.cost / shadowed.cost:.2f} | {shadowed.rate / ours.rate:.2f} | |")
    logged = cases["levada linear, logged"]
    print(f"| with predictions logged | {ours.cost / logged.cost:.2f} | {logged.rate / ours.rate:.2f} | |")
    answered, kept = (counter(logged.server, name) for name in ("predict_rows", "prediction_log_rows"))
    print(f"kept at the best rate: {kept / answered:.0%} of {answered:.0f} predictions")


def test_start_and_memory(servers: dict[str, Server], models: dict[str, Trained], tmp_path: Path) -> None:
    ours = []
    with mlflow_server() as registry:
        for number in range(ROUNDS):
            with predictor(models["linear"], tmp_path / str(number), registry) as server:
                ours.append(server.started)
                time.sleep(0.5)
    print("\n| server | start to first prediction, s | memory, MB |\n|---|--:|--:|")
    for name, server in servers.items():
        print(f"| {name} | {server.started:.2f} | {resident(server.pid):.0f} |")
    print(
        f"levada, {ROUNDS} starts: {min(ours):.2f} to {max(ours):.2f} s (goal {GOALS['start']:g}); memory goal "
        f"{GOALS['memory']:g} MB"
    )
