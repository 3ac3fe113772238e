from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from levada.config import CollectorSettings, KafkaSettings, Settings

from .kafka import MockKafka

FIELDS = {"n": {"type": "long", "rule": "n BETWEEN 0 AND 100"}, "user": {"type": "string"}}


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
    """A collector's settings, with two pipelines that have a topic and one that has none."""
    folder: Path = tmp_path_factory.mktemp("collector")
    pipelines, keys = folder / "pipelines", folder / "keys.json"
    pipelines.mkdir()
    for name, entry in {"plain": {}, "keyed": {"key": "user"}, "no-topic": {}, "off": {"enabled": False}}.items():
        (pipelines / f"{name}.json").write_text(json.dumps({"fields": FIELDS, **entry}))
    keys.write_text(
        json.dumps(
            {
                "all": {"sha256": digest("k-all"), "pipelines": ["*"]},
                "one": {"sha256": digest("k-one"), "pipelines": ["keyed"]},
            }
        )
    )
    for topic in ("plain", "keyed"):
        kafka.make_topic(topic)
    return Settings(
        pipelines=pipelines,
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, protocol="PLAINTEXT"),
        collector=CollectorSettings(port=free_port(), api_keys_file=keys, max_body_bytes=10_000),
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
