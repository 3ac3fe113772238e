from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.unit.ingest.collecting import Collecting, free_port
from tests.unit.ingest.kafka import MockKafka

EXAMPLE = Path(__file__).parents[4] / "examples" / "orders"


class Page:
    """The order page as its image runs it."""

    def __init__(self, folder: Path, collector: Collecting) -> None:
        self.log = folder / "page.log"
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "session-key").write_text("0123456789abcdef" * 4)
        environment = {
            "PATH": os.environ["PATH"],
            "ORDERS_COLLECTOR_URL": collector.url,
            "ORDERS_API_KEY_FILE": str(collector.key_file),
            "ORDERS_SESSION_KEY_FILE": str(folder / "session-key"),
            "ORDERS_PORT": str(self.port),
            "ORDERS_METRICS_PORT": str(self.metrics_port),
        }
        command = [sys.executable, "-m", "gunicorn", "--config", str(EXAMPLE / "gunicorn.conf.py")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    kafka = MockKafka()
    for topic in ("orders", "orders.review"):
        kafka.make_topic(topic)
    yield kafka
    kafka.go_on()
    kafka.kill()


@pytest.fixture(scope="module")
def collector(kafka: MockKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collecting]:
    declared = yaml.safe_load((EXAMPLE / "values.yaml").read_text())["global"]["pipelines"]
    collector = Collecting(tmp_path_factory.mktemp("collector"), kafka.bootstrap, declared)
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def page(collector: Collecting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("page"), collector)
    yield page
    page.stop()
