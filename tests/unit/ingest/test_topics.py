"""What `levada topics apply` asks of Kafka; that Kafka then does it is shown on the cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka.admin import AclOperation, ResourcePatternType, ResourceType

from levada.config import KafkaSettings
from levada.ingest import topics
from levada.ingest.topics import TopicsError, User, rights, specs, users_in
from levada.pipeline import Pipeline, parse_pipeline

FIELDS = {"n": {"type": "long"}}


def pipeline(partitions: int = 3, retention: str = "7d", **more: Any) -> Pipeline:
    return parse_pipeline(
        {"fields": FIELDS, "topic": {"partitions": partitions, "retention": retention}, **more}, "iris"
    )


def test_topics_are_derived_from_the_declaration() -> None:
    events, dead = specs([pipeline(retention="12h"), pipeline(enabled=False)])
    assert (events.name, events.partitions, events.config(1)) == (
        "iris",
        3,
        {"retention.ms": "43200000", "max.message.bytes": "10485760", "min.insync.replicas": "1"},
    )
    assert dead.name == "iris.dead"
    assert dead.max_message_bytes > events.max_message_bytes
    assert events.config(3)["min.insync.replicas"] == "2"


def test_each_client_may_do_what_it_needs_and_no_more() -> None:
    users = [User(client, f"{client}-user", "x") for client in ("collector", "sink", "metrics")]
    found = {
        (acl.principal, acl.operation.name, acl.restype.name, acl.name, acl.resource_pattern_type.name)
        for acl in rights(users, [pipeline()])
    }
    literal, cluster = "LITERAL", ("BROKER", "kafka-cluster", "LITERAL")
    assert found == {
        ("User:collector-user", "WRITE", "TOPIC", "iris", literal),
        ("User:collector-user", "DESCRIBE", "TOPIC", "iris", literal),
        ("User:collector-user", "IDEMPOTENT_WRITE", *cluster),
        ("User:sink-user", "READ", "TOPIC", "iris", literal),
        ("User:sink-user", "DESCRIBE", "TOPIC", "iris", literal),
        ("User:sink-user", "WRITE", "TOPIC", "iris.dead", literal),
        ("User:sink-user", "DESCRIBE", "TOPIC", "iris.dead", literal),
        ("User:sink-user", "READ", "GROUP", "levada-sink-", "PREFIXED"),
        ("User:sink-user", "IDEMPOTENT_WRITE", *cluster),
        ("User:metrics-user", "DESCRIBE", "TOPIC", "*", literal),
        ("User:metrics-user", "DESCRIBE", "GROUP", "*", literal),
        ("User:metrics-user", "DESCRIBE", *cluster),
    }
    with pytest.raises(TopicsError, match="none of collector, sink, metrics"):
        rights([User("spy", "spy", "x")], [])


def test_users_are_read_from_folders(tmp_path: Path) -> None:
    assert users_in(tmp_path / "none") == []
    for client in ("sink", "..data"):
        (tmp_path / client).mkdir()
        (tmp_path / client / "username").write_text("s\n")
        (tmp_path / client / "password").write_text("p")
    assert users_in(tmp_path) == [User("sink", "s", "p")]


class Admin:
    """As much of Kafka's admin API as topics need, with one topic in it."""

    def __init__(self, partitions: int, retention: str) -> None:
        self.partitions, self.config = partitions, specs([pipeline(retention=retention)])[0].config(1)
        self.calls: list[Any] = []

    def list_topics(self, timeout: float) -> Any:
        parts = {number: SimpleNamespace(replicas=[0]) for number in range(self.partitions)}
        return SimpleNamespace(brokers={0: None}, topics={"iris": SimpleNamespace(partitions=parts)})

    def describe_configs(self, resources: list[Any], **_: Any) -> dict[Any, Future[Any]]:
        return {resources[0]: done({name: SimpleNamespace(value=value) for name, value in self.config.items()})}

    def __getattr__(self, name: str) -> Callable[..., dict[Any, Future[Any]]]:
        def call(wanted: list[Any], **_: Any) -> dict[Any, Future[Any]]:
            self.calls.append((name, wanted[0]))
            return {wanted[0]: done(None)}

        return call


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def run(admin: Admin, wanted: Pipeline) -> list[str]:
    lines: list[str] = []
    topics._apply_topics(admin, specs([wanted])[:1], lines.append)
    return lines


def test_nothing_is_changed_twice() -> None:
    admin = Admin(3, "7d")
    assert run(admin, pipeline()) == ["topic iris: settings unchanged"]
    assert admin.calls == []


def test_partitions_grow_and_retention_changes() -> None:
    admin = Admin(3, "7d")
    lines = run(admin, pipeline(5, "1d"))
    assert lines == ["topic iris: 3 → 5 partitions", "topic iris: retention.ms 604800000 → 86400000"]
    (grow, partitions), (alter, resource) = admin.calls
    assert (grow, partitions.new_total_count) == ("create_partitions", 5)
    assert alter == "incremental_alter_configs"
    assert [(entry.name, entry.value) for entry in resource.incremental_configs] == [("retention.ms", "86400000")]


def test_partitions_never_shrink() -> None:
    admin = Admin(4, "7d")
    with pytest.raises(TopicsError, match="iris has 4 partitions, the declaration asks for 3: Kafka cannot"):
        run(admin, pipeline(3))
    assert admin.calls == []


def test_kafka_that_does_not_answer_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "_REQUEST_SECONDS", 0.5)
    kafka = KafkaSettings(bootstrap="127.0.0.1:1", protocol="PLAINTEXT")
    with pytest.raises(TopicsError, match=r"127\.0\.0\.1:1: .*gave up after 0 s"):
        topics.apply(kafka, {"iris": pipeline()}, [], timeout=0, report=lambda _: None)


def test_acl_names_are_the_ones_kafka_knows() -> None:
    assert ResourceType.BROKER.value == 4  # "cluster" in Kafka's protocol
    assert AclOperation.IDEMPOTENT_WRITE.value == 12
    assert ResourcePatternType.PREFIXED.value == 4
