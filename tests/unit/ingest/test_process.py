"""The real process `levada collect`, while its Kafka hangs, dies and was never there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from levada.config import Settings

from .conftest import free_port
from .kafka import MockKafka

KEY = {"Authorization": "Bearer k-all"}
JSON = {**KEY, "Content-Type": "application/json"}
GOOD = {"n": 1, "user": "u1"}


class Process:
    def __init__(self, settings: Settings, bootstrap: str) -> None:
        self.health = f"http://127.0.0.1:{(health_port := free_port())}"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v1/plain/events"
        environment = {
            "PATH": os.environ["PATH"],
            "LEVADA_PIPELINES": str(settings.pipelines),
            "LEVADA_KAFKA__BOOTSTRAP": bootstrap,
            "LEVADA_KAFKA__PROTOCOL": "PLAINTEXT",
            "LEVADA_COLLECTOR__PORT": str(port),
            "LEVADA_COLLECTOR__API_KEYS_FILE": str(settings.collector.api_keys_file),
            "LEVADA_COLLECTOR__PEPPER_FILE": str(settings.collector.pepper_file),
            "LEVADA_HEALTH_PORT": str(health_port),
        }
        command = [sys.executable, "-c", "from levada.cli.main import main; main()", "collect"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        self._wait_until_live()

    def _wait_until_live(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.post(self.url)
                return
            except httpx.TransportError:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def ready(self) -> bool:
        return httpx.get(f"{self.health}/readyz").status_code == 200

    def post(self) -> httpx.Response:
        return httpx.post(self.url, headers=KEY, json=GOOD, timeout=10)

    def memory(self) -> int:
        """The most it has ever used, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


@pytest.fixture
def start(settings: Settings) -> Iterator[object]:
    running: list[Process] = []

    def start(bootstrap: str) -> Process:
        running.append(Process(settings, bootstrap))
        return running[-1]

    yield start
    for process in running:
        process.process.kill()
        process.process.wait()


def refused_within_a_second(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.elapsed.total_seconds() < 1 + 0.2  # for the way there and back on a busy machine
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["event_id"]


@pytest.mark.row(1, process=True, part="no success before Kafka has it")
@pytest.mark.row(7, process=True, part="the error that may be retried")
def test_kafka_hangs_comes_back_and_dies(start: object, kafka: MockKafka) -> None:
    collector: Process = start(kafka.bootstrap)  # type: ignore[operator]
    deadline = time.monotonic() + 20
    while not collector.ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert collector.post().status_code == 202
    before = collector.memory()
    for _ in range(3):  # neither is kept: one says its size, the other is counted
        for body in (b" " * 20_000_000, (b" " * 100_000 for _ in range(200))):
            assert httpx.post(collector.url, headers=JSON, content=body).status_code == 413
    assert collector.memory() - before < 10
    kafka.hold()
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: collector.post(), range(8)):
            refused_within_a_second(answer)
    known = collector.post()  # that Kafka is away: nobody has to wait any more
    assert (known.status_code, known.elapsed.total_seconds() < 0.3) == (503, True)
    before = collector.memory()
    large = b'{"n": 1, "user": "' + b"x" * 1_000_000 + b'"}'
    with ThreadPoolExecutor(48) as pool:  # 96 MB of events that Kafka does not take

        def post_large(_: int) -> int:
            return httpx.post(collector.url, headers=JSON, content=large, timeout=20).status_code

        assert set(pool.map(post_large, range(96))) == {503}
    assert collector.memory() - before < 64
    kafka.go_on()
    deadline = time.monotonic() + 5
    while collector.post().status_code != 202:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    kafka.kill()
    refused_within_a_second(collector.post())
    assert collector.ready()  # clients shall see our 503
    collector.process.send_signal(signal.SIGTERM)
    assert collector.process.wait(15) == 0


def test_kafka_was_never_there(start: object) -> None:
    collector: Process = start(f"127.0.0.1:{free_port()}")  # type: ignore[operator]
    assert not collector.ready()
    refused_within_a_second(collector.post())
