from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from levada.stream import sink
from levada.stream.source import Source

from .rig import Rig


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    """Address of a mock cluster."""
    host = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(host.list_topics(timeout=10).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    del host


@pytest.fixture
def rig(bootstrap: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A pipeline of its own for each test."""
    monkeypatch.setattr(sink, "_POLL_SECONDS", 0.02)
    rig = Rig(bootstrap, tmp_path, "p" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12])
    # The mock cluster does not know DescribeTopics; the cluster tests ask a real broker.
    monkeypatch.setattr(Source, "topic", lambda _: rig.topic)
    return rig
