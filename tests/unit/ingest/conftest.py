from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from levada.config import CollectorSettings, KafkaSettings, Settings
from levada.http import reload
from levada.ingest import collector as module
from levada.ingest.collector import Collector

from .kafka import MockKafka

FIELDS = {"n": {"type": "long", "rule": "n BETWEEN 0 AND 100"}, "user": {"type": "string"}}
PIN = {"type": "string", "rule": "REGEXP(pin, '^[0-9]{4}$')"}
PEPPER = "a-pepper-of-these-tests"
PIPELINES: dict[str, dict[str, Any]] = {
    "plain": {"fields": FIELDS},
    "keyed": {"fields": FIELDS, "key": "user"},
    "no-topic": {"fields": FIELDS},
    "off": {"fields": FIELDS, "enabled": False},
    "timed": {
        "fields": {"at": {"type": "timestamp"}},
        "eventTime": "at",
        "lake": {"lateHorizon": "2d", "maxAhead": "1h"},
    },
    "sealed": {
        "key": "user",
        "fields": {
            "user": {"type": "string", "sensitive": "hmac"},
            "pin": {**PIN, "sensitive": "argon2id"},
            "when": {"type": "timestamp", "required": False},
            "note": {"type": "string", "sensitive": "hmac", "required": False},
        },
    },
    "screened": {
        "key": "user",
        "fields": {"user": {"type": "string"}, "amount": {"type": "double"}, "pin": {**PIN, "sensitive": "hmac"}},
        "screen": {
            "often": {"rate": {"field": "user", "events": 3, "per": "1h"}},
            "large": {"rule": "amount > 1000"},
            "well-known": {"rule": "pin IN ('1234', '0000')"},
        },
    },
}
NO_TOPIC = ("no-topic", "off")


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    kafka = MockKafka()
    yield kafka
    kafka.go_on()
    kafka.kill()


@pytest.fixture(scope="module")
def settings(kafka: MockKafka, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A collector's settings, with :data:`PIPELINES`; digests are cheap."""
    folder: Path = tmp_path_factory.mktemp("collector")
    pipelines, keys = folder / "pipelines", folder / "keys.json"
    pipelines.mkdir()
    for name, entry in PIPELINES.items():
        (pipelines / f"{name}.json").write_text(json.dumps(entry))
    (folder / "pepper").write_text(PEPPER)
    keys.write_text(
        json.dumps(
            {
                "all": {"sha256": digest("k-all"), "pipelines": ["*"]},
                "one": {"sha256": digest("k-one"), "pipelines": ["keyed"]},
            }
        )
    )
    for topic in (*(PIPELINES.keys() - NO_TOPIC), "screened.review"):
        kafka.make_topic(topic)
    return Settings(
        pipelines=pipelines,
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, protocol="PLAINTEXT"),
        collector=CollectorSettings(
            port=free_port(),
            api_keys_file=keys,
            max_body_bytes=10_000,
            max_bulk_bytes=200_000,
            max_bulk_lines=1000,
            pepper_file=folder / "pepper",
            argon2_memory_kib=64,
            argon2_passes=1,
        ),
    )


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    """A client of a collector that runs in a thread."""
    collector, stop = Collector(settings), threading.Event()
    assert not collector.ready()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "_REFRESH_SECONDS", 0.2)
        thread = threading.Thread(target=lambda: asyncio.run(module._serve(collector, settings.collector, stop)))
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.collector.port}", timeout=10) as client:
            wait_until(collector.ready)
            yield client
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
