"""Three real brokers beside three real controllers: the quorum is the controllers' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from levada.ingest import topics
from levada.pipeline import parse_pipeline

from .brokers import Brokers, running, until

VALUES = {"ingest": {"kafka": {"replicas": 3, "controllers": {"enabled": True}}}}


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    yield from running(tmp_path_factory.mktemp("controllers"), VALUES)


def test_controllers_are_replaced_and_brokers_never_notice(kafka: Brokers) -> None:
    declared = {"plants": parse_pipeline({"fields": {"n": {"type": "long"}}}, "plants")}
    topics.apply(kafka.settings("admin"), declared, kafka.users(), timeout=60, report=lambda _: None)
    assert kafka.produce("collector", "plants", b"before") is None
    assert kafka.voters == (100, 101, 102)
    until(lambda: all(kafka.raft(n).get("number_of_voters") == 3 for n in kafka.voters), 30, "three voters")
    assert kafka.raft(0)["current_leader"] >= 100
    disk = kafka.directory(100)
    kafka.kill(100, wipe=True)
    assert kafka.produce("collector", "plants", b"between") is None
    kafka.start(100)
    until(lambda: kafka.raft(100).get("number_of_voters") == 3, 30, "three voters")
    assert kafka.directory(100) != disk
    kafka.kill(1, wipe=True)
    kafka.start(1)
    kafka.wait_in_sync(0, 1, 2)
    assert kafka.produce("collector", "plants", b"after") is None
    assert {message.value() for message in kafka.read("plants")} == {b"before", b"between", b"after"}
