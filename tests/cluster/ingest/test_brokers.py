"""Three real brokers with the chart's settings: what they refuse, what they keep, and what a lost volume costs."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

from levada.ingest import topics
from levada.pipeline import Pipeline, parse_pipeline

from .brokers import Brokers, Load, running, until

PIPELINE = parse_pipeline(
    {"fields": {"n": {"type": "long"}}, "screen": {"much": {"rule": "n > 9"}}, "topic": {"partitions": 3}}, "numbers"
)
LOADED = parse_pipeline({"fields": {"n": {"type": "long"}}, "topic": {"partitions": 3}}, "loaded")
DECLARED = {each.name: each for each in (PIPELINE, LOADED)}
WEEK = 7 * 24 * 3600


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    folder = tmp_path_factory.mktemp("kafka")
    for brokers in running(folder, {"ingest": {"kafka": {"replicas": 3}}}):
        settle(brokers)
        yield brokers


def settle(kafka: Brokers) -> None:
    apply(kafka)
    # Each broker hears of a new topic in its own time.
    until(lambda: not plan(kafka).changes, 30, "the topics")


def apply(kafka: Brokers, declared: dict[str, Pipeline] = DECLARED) -> list[str]:
    lines: list[str] = []
    topics.apply(kafka.settings("admin"), declared, kafka.users(), timeout=60, report=lines.append)
    return lines


def plan(kafka: Brokers, declared: dict[str, Pipeline] = DECLARED) -> topics.Plan:
    return topics.plan(kafka.settings("admin"), declared, kafka.users(), timeout=60, report=print)


@contextmanager
def under_load(kafka: Brokers) -> Iterator[Load]:
    """A producer for the time of the block; then all that was acknowledged is there once, in its key's order."""
    load, stop, before = Load(), threading.Event(), kafka.ends("loaded")
    thread = threading.Thread(target=kafka.load, args=("loaded", stop, load))
    thread.start()
    try:
        until(lambda: len(load.acknowledged) > 100, 30, "the first acknowledgements")
        yield load
        time.sleep(1)
    finally:
        stop.set()
        thread.join(180)
    assert (load.failed, sorted(load.acknowledged)) == ([], list(range(load.sent)))
    numbers: dict[bytes | None, list[int]] = {}
    for message in kafka.read("loaded", since=before):
        numbers.setdefault(message.key(), []).append(int(message.value() or b""))
    assert numbers == {f"key-{key}".encode(): list(range(key, load.sent, 7)) for key in range(7)}
    print(f"{load.sent} acknowledged, each there once and in order; longest pause {load.longest:.1f} s")


def test_the_quorum_is_of_three_voters_in_three_zones(kafka: Brokers) -> None:
    until(lambda: all(kafka.raft(n).get("number_of_voters") == 3 for n in range(3)), 30, "three voters")
    leaders = {kafka.raft(n)["current_leader"] for n in range(3)}
    assert len(leaders) == 1
    assert leaders < {0.0, 1.0, 2.0}
    racks = kafka.admin.describe_cluster().result().nodes
    assert {node.id: node.rack for node in racks} == {n: f"zone-{n}" for n in range(3)}


@pytest.mark.row(8, process=True)
def test_topics_come_from_the_declaration_and_applying_again_changes_nothing(kafka: Brokers) -> None:
    listing = kafka.admin.list_topics(timeout=10).topics
    for name in ("numbers", "numbers.dead", "numbers.review", "loaded", "loaded.dead"):
        assert len(listing[name].partitions) == 3
        assert all(len(set(each.replicas)) == 3 for each in listing[name].partitions.values())
        assert setting(kafka, name, "min.insync.replicas") == "2"
    todo = plan(kafka)
    assert (todo.changes, todo.refused, todo.kept) == ([], [], [])
    (line,) = apply(kafka)
    assert line.endswith("as declared, 0 changes were made")
    # Kafka's own topics are kept as often.
    consumer = Consumer(kafka.client("loader", group_id="levada-load-first"))
    consumer.subscribe(["numbers"])
    until(lambda: consumer.poll(0.1) is None and consumer.assignment(), 30, "a group")
    consumer.close()
    offsets = kafka.admin.list_topics(timeout=10).topics["__consumer_offsets"]
    assert all(len(each.replicas) == 3 for each in offsets.partitions.values())
    assert setting(kafka, "__consumer_offsets", "min.insync.replicas") == "2"


def test_a_plan_is_what_apply_then_does(kafka: Brokers) -> None:
    entry: dict[str, Any] = {"fields": {"n": {"type": "long"}}, "topic": {"partitions": 2, "retention": "1d"}}
    declared = {**DECLARED, "grown": parse_pipeline(entry, "grown")}
    assert plan(kafka, declared).changes
    apply(kafka, declared)
    entry["topic"] = {"partitions": 4, "retention": "2d"}
    declared["grown"] = parse_pipeline(entry, "grown")
    planned = [change.what for change in plan(kafka, declared).changes]
    assert planned == [
        "topic grown: 2 → 4 partitions", "topic grown: retention.ms 86400000 → 172800000",
        "topic grown.dead: 2 → 4 partitions", "topic grown.dead: retention.ms 86400000 → 172800000",
    ]  # fmt: skip
    assert apply(kafka, declared)[:-1] == planned
    entry["topic"] = {"partitions": 3, "retention": "2d"}
    declared["grown"] = parse_pipeline(entry, "grown")
    todo = plan(kafka, declared)
    assert (todo.changes, len(todo.refused)) == ([], 2)
    with pytest.raises(topics.TopicsError, match="grown has 4 partitions, the declaration asks for 3"):
        apply(kafka, declared)
    foreign = AclBinding(
        ResourceType.TOPIC, "grown", ResourcePatternType.LITERAL, "User:somebody", "*", AclOperation.READ,
        AclPermissionType.ALLOW,
    )  # fmt: skip
    for future in kafka.admin.create_acls([foreign]).values():
        future.result()
    until(lambda: "User:somebody" in allowed(kafka, "grown"), 30, "a right of somebody else")
    ours = {"User:admin", "User:collector", "User:loader", "User:sink"}
    assert allowed(kafka, "grown") == {*ours, "User:somebody"}
    todo = plan(kafka)
    assert [line.partition(":")[0] for line in todo.kept] == ["topic grown", "topic grown.dead"]
    taken = [change.what for change in todo.changes]
    assert "User:sink: no longer allow WRITE on topic grown.dead" in taken
    assert all(re.fullmatch(r"User:\w+: no longer allow [A-Z]+ on topic grown(\.dead)?", line) for line in taken)
    apply(kafka)
    # The admin may do anything anyway.
    until(lambda: allowed(kafka, "grown") == {"User:admin", "User:somebody"}, 30, "the end of the rights")
    until(lambda: not plan(kafka).changes, 30, "each broker's word of it")
    assert kafka.produce("collector", "grown", b"1") == "TOPIC_AUTHORIZATION_FAILED"
    for future in kafka.admin.delete_topics(["grown", "grown.dead"]).values():
        future.result()


def allowed(kafka: Brokers, topic: str) -> set[str]:
    """Who may do anything with a topic that is named in the right."""
    named = AclBindingFilter(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    return {binding.principal for binding in kafka.admin.describe_acls(named).result()}


@pytest.mark.row(9, process=True)
@pytest.mark.parametrize("user", ["admin", "collector"])
def test_a_topic_that_was_never_declared_is_refused(kafka: Brokers, user: str) -> None:
    """Even to the admin, who may do anything."""
    refused = {
        "admin": {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_MSG_TIMED_OUT"},
        "collector": {"TOPIC_AUTHORIZATION_FAILED"},
    }
    assert kafka.produce(user, "never-declared", b"1") in refused[user]
    assert "never-declared" not in kafka.admin.list_topics(timeout=10).topics


@pytest.mark.row(15, process=True)
def test_a_client_without_credentials_is_refused(kafka: Brokers) -> None:
    nobody = {"bootstrap.servers": kafka.bootstrap, "log_level": 0}
    wrong = kafka.client("collector", sasl_password="wrong")
    as_plain = kafka.client("collector", sasl_mechanism="PLAIN")
    for client in (nobody, wrong, as_plain):
        with pytest.raises(KafkaException):
            AdminClient({**client, "error_cb": lambda _: None}).list_topics(timeout=3)


@pytest.mark.row(15, process=True)
def test_a_client_without_the_right_is_refused(kafka: Brokers) -> None:
    for user, topic in [
        ("sink", "numbers"),
        ("predictor", "numbers"),
        ("loader", "numbers"),
        ("metrics", "numbers"),
        ("collector", "numbers.dead"),
    ]:
        assert kafka.produce(user, topic, b"1") == "TOPIC_AUTHORIZATION_FAILED", (user, topic)
    for user, topic in [("collector", "numbers"), ("collector", "numbers.review"), ("sink", "numbers.dead")]:
        assert kafka.produce(user, topic, b"1") is None, (user, topic)
    # Released from review; read by ranges of offsets.
    assert kafka.produce("admin", "numbers", b"1") is None
    assert len(kafka.read("numbers.review")) == 1
    assert len(kafka.read("numbers", "loader")) == 2
    for user, group, topic, refused in [
        ("collector", "levada-load-x", "numbers", "GROUP_AUTHORIZATION_FAILED"),
        ("loader", "another", "numbers", "GROUP_AUTHORIZATION_FAILED"),
        ("loader", "levada-load-x", "numbers.review", "TOPIC_AUTHORIZATION_FAILED"),
    ]:
        consumer = Consumer(kafka.client(user, group_id=group))
        consumer.subscribe([topic])
        answer: Any = until(lambda consumer=consumer: consumer.poll(1), 20, "an answer")  # type: ignore[misc]
        assert answer.error().name() == refused, (user, topic)
        consumer.close()


@pytest.mark.row(13, process=True)
def test_ten_mebibytes_are_the_bound(kafka: Brokers) -> None:
    """Of a batch of one message as it is kept, with the 74 bytes that Kafka puts around a value of this size."""
    most = topics.MAX_MESSAGE_BYTES - 74
    assert kafka.produce("collector", "numbers", b"x" * most) is None
    assert kafka.produce("collector", "numbers", b"x" * (most + 1)) == "MSG_SIZE_TOO_LARGE"
    # A refused message of the greatest size fits with the reasons around it.
    headers = [("reason", b"r" * 60_000)]
    assert kafka.produce("sink", "numbers.dead", b"x" * most, headers=headers) is None


@pytest.mark.row(13, process=True)
def test_a_week_is_the_bound(kafka: Brokers) -> None:
    assert setting(kafka, "numbers", "retention.ms") == str(WEEK * 1000)
    now = int(time.time())
    for partition, age in [(0, WEEK + 30), (1, WEEK - 120)]:
        stamp = (now - age) * 1000
        assert kafka.produce("sink", "loaded.dead", b"1", partition=partition, timestamp=stamp) is None
    until(lambda: kafka.ends("loaded.dead")[0] == (1, 1), 30, "the end of what is older than a week")
    time.sleep(3)  # more looks at what is too old
    assert kafka.ends("loaded.dead")[1] == (0, 1)


def setting(kafka: Brokers, topic: str, name: str) -> str:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    return str(kafka.admin.describe_configs([resource])[resource].result()[name].value)


@pytest.mark.row(10, process=True)
@pytest.mark.row(12, process=True)
@pytest.mark.parametrize("node", [1, 0])
def test_a_broker_is_killed_and_its_volume_wiped_under_load(kafka: Brokers, node: int) -> None:
    """Node 0 began the quorum: with an empty disk it joins like any other."""
    disk = kafka.directory(node)
    with under_load(kafka) as load:
        kafka.kill(node, wipe=True)
        time.sleep(5)
        kafka.start(node)
        kafka.wait_in_sync(node)
    assert load.longest < 15  # a busy machine; it is 6 s until the broker is given up
    assert kafka.directory(node) != disk
    # The old voter has gone: with it there would be four.
    until(lambda: all(kafka.raft(n).get("number_of_voters") == 3 for n in range(3)), 30, "three voters")
    kafka.wait_in_sync(0, 1, 2)


@pytest.mark.row(10, process=True)
@pytest.mark.row(12, process=True)
def test_a_rolling_restart_under_load_loses_nothing(kafka: Brokers) -> None:
    stops = []
    with under_load(kafka):
        for node in (2, 1, 0):
            stops.append(kafka.stop(node))
            kafka.start(node)
            kafka.wait_in_sync(node)
    assert max(stops) < 30, stops
    print("stops took", ", ".join(f"{each:.1f} s" for each in stops))


@pytest.mark.row(10, process=True)
def test_one_broker_alone_acknowledges_nothing(kafka: Brokers) -> None:
    """Two copies or no acknowledgement; and when all come back, none waits for another."""
    before = [message.value() for message in kafka.read("loaded")]
    for node in (1, 2):
        kafka.kill(node)
    assert kafka.produce("collector", "loaded", b"refused") is not None
    kafka.kill(0)
    kafka.start(0, 1, 2)
    kafka.wait_in_sync(0, 1, 2)
    assert kafka.produce("collector", "loaded", b"0") is None
    after = [message.value() for message in kafka.read("loaded")]
    assert len(after) >= len(before) + 1
    assert set(before) <= set(after)


def test_an_empty_disk_alone_begins_nothing(kafka: Brokers) -> None:
    """Node 0 may begin a quorum. Alone with an empty disk it cannot know whether there is one, and waits."""
    assert kafka.produce("collector", "loaded", b"1") is None
    before = [message.value() for message in kafka.read("loaded")]
    for node in (0, 1):
        kafka.stop(node)
    kafka.kill(2)  # It has no quorum left to hand over to, and would wait for one.
    kafka.wipe(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(kafka.start, 0)
        time.sleep(6)
        assert not kafka.disk(0).exists()
        kafka.start(1, 2)
        waiting.result(60)
    kafka.wait_in_sync(0, 1, 2)
    assert {message.value() for message in kafka.read("loaded")} == set(before)
    until(lambda: all(kafka.raft(n).get("number_of_voters") == 3 for n in range(3)), 30, "three voters")
