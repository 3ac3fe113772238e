"""What a well-behaved client notices of a hostile one: its tail while every hostile kind is sent, and alone.

Method: the real predictor on core 0, with the packages of its image, keys, metrics and logging; on core 1 a client that
keeps its own time, alone, and then beside one that sends the kinds of tests/unit/serving/test_hostile.py, each once a
round. Rounds alternate, and medians are compared. The two clients share a core, so a third sort of round sends the same
to a socket that only reads: what the neighbour sees then is the client's doing, and the goal is a ratio to that.
"""

from __future__ import annotations

import os
import socketserver
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.bench.openloop import tail
from tests.environments import image
from tests.unit.ingest.kafka import MockKafka
from tests.unit.serving.conftest import mlflow_server, model_file
from tests.unit.serving.predicting import Process
from tests.unit.serving.test_hostile import CASES, TARGET

from .load import CLIENT_CORE
from .servers import ROOT, pinned
from .test_predict import ROUNDS

RATE = 1000.0
"""Requests a second of the neighbour, a twentieth of the best rate."""
HOSTILE = 20.0
"""Hostile requests a second."""
GOAL = 2.0
ON_CORE = ("taskset", "-c", str(CLIENT_CORE), sys.executable)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    broker = MockKafka()
    broker.make_topic("things.predictions")
    with mlflow_server() as registry:
        registry.promote("1", model_file())
        with pinned():
            process = Process(
                tmp_path_factory.mktemp("neighbours"), registry.uri, python=str(image("serving") / "bin" / "python"),
                PYTHONPATH=str(ROOT / "src"), LEVADA_PREDICTOR__POLL_SECONDS="5",
                LEVADA_KAFKA__BOOTSTRAP=broker.bootstrap, LEVADA_KAFKA__PROTOCOL="PLAINTEXT",
            )  # fmt: skip
        yield process
        process.stop()
    broker.kill()


@pytest.fixture(scope="module")
def nobody() -> Iterator[int]:
    """Port of a socket that reads and answers nothing."""

    class Reader(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(1_048_576):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Reader) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def hostile(port: int) -> Iterator[subprocess.Popen[str]]:
    """The other client, at work."""
    # Last in the queue for the core, so that it is the neighbour who keeps time.
    command = ["nice", "-n", "19", *ON_CORE, "-m", "tests.bench.serving.hostile", str(port), str(HOSTILE)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.stdin.write("\n")
        running.stdin.flush()
        yield running


def neighbour(port: int) -> tuple[float, float]:
    """p50 and p99 in milliseconds, for as long as a round of the hostile ones lasts."""
    seconds = len(CASES) / HOSTILE
    return tail(port, TARGET.one, rate=RATE, seconds=seconds, connections=64, cores=str(CLIENT_CORE))[:2]


def test_what_neighbours_of_hostile_clients_notice(process: Process, nobody: int) -> None:
    with hostile(process.port):
        neighbour(process.port)
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "beside hostile ones": [], "sent to nobody": []}
    for _ in range(ROUNDS):
        found["alone"].append(neighbour(process.port))
        with hostile(process.port) as other:
            found["beside hostile ones"].append(neighbour(process.port))
            assert other.communicate(timeout=60)[0] == "\n", "answered, but not as meant"
        with hostile(nobody):
            found["sent to nobody"].append(neighbour(process.port))
    print(
        f"\nload of the machine {os.getloadavg()[0]:.1f}; {ROUNDS} rounds: {RATE:g} requests/s, beside them "
        f"{HOSTILE:g} hostile ones/s of {len(CASES)} kinds"
    )
    print("| neighbour | p50 ms | p99 ms | ÷ alone | ÷ sent to nobody |\n|---|--:|--:|--:|--:|")
    alone, nothing = (statistics.median(p99 for _, p99 in found[name]) for name in ("alone", "sent to nobody"))
    for name, values in found.items():
        p50, p99 = (statistics.median(column) for column in zip(*values, strict=True))
        least, most = (pick(each for _, each in values) for pick in (min, max))
        print(
            f"| {name} | {p50:.2f} | {p99:.2f} ({least:.2f} to {most:.2f}) | {p99 / alone:.2f} | {p99 / nothing:.2f} |"
        )
    print(f"goal: {GOAL:g} of what is sent to nobody")
