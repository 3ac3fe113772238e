"""What `levada topics apply` asks of Kafka; that Kafka then does it is shown on the cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType

from levada.config import KafkaSettings
from levada.ingest import topics
from levada.ingest.topics import Plan, TopicsError, User, rights, specs, surplus, users_in
from levada.pipeline import Pipeline, parse_pipeline

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

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
    users = [User(client, f"{client}-user", "x") for client in ("collector", "sink", "loader", "metrics")]
    literal, cluster = "LITERAL", ("BROKER", "kafka-cluster", "LITERAL")
    assert granted(users, [pipeline()]) == {
        ("User:collector-user", "WRITE", "TOPIC", "iris", literal),
        ("User:collector-user", "DESCRIBE", "TOPIC", "iris", literal),
        ("User:collector-user", "IDEMPOTENT_WRITE", *cluster),
        ("User:sink-user", "READ", "TOPIC", "iris", literal),
        ("User:sink-user", "DESCRIBE", "TOPIC", "iris", literal),
        ("User:sink-user", "WRITE", "TOPIC", "iris.dead", literal),
        ("User:sink-user", "DESCRIBE", "TOPIC", "iris.dead", literal),
        ("User:sink-user", "READ", "GROUP", "levada-sink-", "PREFIXED"),
        ("User:sink-user", "IDEMPOTENT_WRITE", *cluster),
        ("User:loader-user", "READ", "TOPIC", "iris", literal),
        ("User:loader-user", "DESCRIBE", "TOPIC", "iris", literal),
        ("User:loader-user", "READ", "GROUP", "levada-load-", "PREFIXED"),
        ("User:metrics-user", "DESCRIBE", "TOPIC", "*", literal),
        ("User:metrics-user", "DESCRIBE", "GROUP", "*", literal),
        ("User:metrics-user", "DESCRIBE", *cluster),
    }
    with pytest.raises(TopicsError, match="none of collector, sink, predictor, loader, admin, metrics"):
        rights([User("spy", "spy", "x")], [])


def granted(users: list[User], pipelines: list[Pipeline]) -> set[tuple[str, ...]]:
    return {
        (acl.principal, acl.operation.name, acl.restype.name, acl.name, acl.resource_pattern_type.name)
        for acl in rights(users, pipelines)
    }


def test_a_screen_adds_a_topic_that_the_collector_writes_and_the_admin_releases_from() -> None:
    screened = pipeline(screen={"many": {"rule": "n > 100"}})
    assert [spec.name for spec in specs([screened])] == ["iris", "iris.dead", "iris.review"]
    users = [User("collector", "c", "x"), User("sink", "s", "x"), User("loader", "l", "x")]
    more = granted(users, [screened]) - granted(users, [pipeline()])
    assert more == {(f"User:{user}", what, "TOPIC", "iris.review", "LITERAL") for user, what in [
        ("c", "WRITE"), ("c", "DESCRIBE"),
    ]}  # fmt: skip
    admin = granted([User("admin", "a", None)], [screened])
    topics_of = {(name, what) for _, what, kind, name, _ in admin if kind == "TOPIC"}
    assert topics_of == {
        (name, what) for name in ("iris", "iris.dead", "iris.review") for what in ("READ", "WRITE", "DESCRIBE")
    }


def test_logged_predictions_have_topics_that_the_predictor_writes_and_the_sink_reads() -> None:
    modelled = {"fields": {"n": {"type": "long"}, "kind": {"type": "string"}}, "model": {"label": "kind"}}
    logging = parse_pipeline(modelled, "iris")
    topics = ("iris.predictions", "iris.predictions.dead")
    assert [spec.name for spec in specs([logging])] == ["iris", "iris.dead", *topics]
    users = [User(client, client, "x") for client in ("predictor", "collector", "sink", "loader", "admin")]
    silent = parse_pipeline({**modelled, "serving": {"logged": 0}}, "iris")
    assert [spec.name for spec in specs([silent])] == ["iris", "iris.dead"]
    assert [acl for acl in granted(users, [silent]) if acl[0] == "User:predictor"] == [
        ("User:predictor", "IDEMPOTENT_WRITE", "BROKER", "kafka-cluster", "LITERAL")
    ]
    more = {(user, what, name) for user, what, _, name, _ in granted(users, [logging]) - granted(users, [silent])}
    assert more == {
        ("User:predictor", "WRITE", "iris.predictions"),
        ("User:predictor", "DESCRIBE", "iris.predictions"),
        ("User:sink", "READ", "iris.predictions"),
        ("User:sink", "DESCRIBE", "iris.predictions"),
        ("User:sink", "WRITE", "iris.predictions.dead"),
        ("User:sink", "DESCRIBE", "iris.predictions.dead"),
        *(("User:admin", what, name) for what in ("READ", "WRITE", "DESCRIBE") for name in topics),
    }


def acl(principal: str, name: str = "iris", operation: str = "READ", **more: Any) -> AclBinding:
    given = {
        "kind": ResourceType.TOPIC,
        "pattern": ResourcePatternType.LITERAL,
        "permission": "ALLOW",
        "host": "*",
    } | more
    return AclBinding(
        given["kind"], name, given["pattern"], principal, given["host"], AclOperation[operation],
        AclPermissionType[given["permission"]],
    )  # fmt: skip


def test_a_right_that_is_not_declared_any_more_is_surplus() -> None:
    users = [User(client, client, "x") for client in ("collector", "sink")]
    before = rights(users, [pipeline(), parse_pipeline({"fields": FIELDS}, "wine")])
    wanted = rights(users, [pipeline()])
    assert surplus(wanted, wanted, users) == []
    assert {(each.principal, each.name) for each in surplus(before, wanted, users)} == {
        ("User:collector", "wine"), ("User:sink", "wine"), ("User:sink", "wine.dead"),
    }  # fmt: skip
    # The same right for one address, or for all names that begin so, is another one.
    others = [acl("User:sink", host="10.0.0.1"), acl("User:sink", pattern=ResourcePatternType.PREFIXED)]
    assert set(surplus([*wanted, *others], wanted, users)) == set(others)


def test_rights_of_others_are_nobodys_surplus() -> None:
    users = [User("sink", "sink", "x"), User("loader", "root", "x"), User("admin", "root", None)]
    wanted = rights(users, [pipeline()])
    others = [
        acl("User:somebody"), acl("User:sink2"), acl("User:*"), acl("User:broker", "*", "ALL"), acl("Group:sink"),
        acl("User:root", "*", "ALL"),  # the admin, though it is the loader too
        acl("User:sink", "wine", permission="DENY"),
    ]  # fmt: skip
    assert surplus([*wanted, *others], wanted, users) == []


def test_users_are_read_from_folders(tmp_path: Path) -> None:
    assert users_in(tmp_path / "none") == []
    for client in ("sink", "..data"):
        (tmp_path / client).mkdir()
        (tmp_path / client / "username").write_text("s\n")
        (tmp_path / client / "password").write_text("p")
    assert users_in(tmp_path) == [User("sink", "s", "p")]


class Admin:
    """As much of Kafka's admin API as topics need, with one topic in it."""

    def __init__(self, partitions: int, retention: str, replicas: int = 3, more: tuple[str, ...] = ()) -> None:
        self.partitions, self.more = partitions, more
        self.replicas = list(range(replicas))
        self.config = specs([pipeline(retention=retention)])[0].config(replicas)
        self.calls: list[Any] = []

    def list_topics(self, timeout: float) -> Any:
        parts = {number: SimpleNamespace(replicas=self.replicas) for number in range(self.partitions)}
        return SimpleNamespace(topics=dict.fromkeys(("iris", *self.more), SimpleNamespace(partitions=parts)))

    def describe_configs(self, resources: list[Any], **_: Any) -> dict[Any, Future[Any]]:
        values = {name: SimpleNamespace(value=value) for name, value in self.config.items()}
        return {resource: done(values) for resource in resources}

    def __getattr__(self, name: str) -> Callable[..., dict[Any, Future[Any]]]:
        def call(wanted: list[Any], **_: Any) -> dict[Any, Future[Any]]:
            self.calls.append((name, wanted[0]))
            return {wanted[0]: done(None)}

        return call


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class WithRights(Admin):
    """Kafka's admin API with rights in it."""

    def __init__(self, present: list[AclBinding]) -> None:
        super().__init__(3, "7d")
        self.present = present

    def describe_acls(self, _: Any, **__: Any) -> Future[list[AclBinding]]:
        return done(self.present)


@pytest.mark.parametrize("password", ["x", None])
def test_surplus_rights_are_taken_back_where_the_user_is_ours(password: str | None) -> None:
    """Of a user that an external Kafka made it is not known who gave it what."""
    users = [User("sink", "s", password)]
    wanted = rights(users, [pipeline()])
    old = acl("User:s", "levada-old-", kind=ResourceType.GROUP, pattern=ResourcePatternType.PREFIXED)
    admin, made = WithRights([*wanted, old, acl("User:somebody")]), Plan()
    topics._plan_rights(cast("AdminClient", admin), wanted, users, made)
    assert made.as_declared == len(wanted)
    if password is None:
        assert made.changes == []
        (line,) = made.kept
        assert line.startswith("User:s: may READ on group levada-old-…, though nothing declared needs it")
        return
    assert made.kept == []
    (change,) = made.changes
    assert change.what == "User:s: no longer allow READ on group levada-old-…"
    change.make(cast("AdminClient", admin))
    ((call, exactly),) = admin.calls
    names = ("restype", "name", "resource_pattern_type", "principal", "host", "operation", "permission_type")
    assert call == "delete_acls"
    assert [getattr(exactly, name) for name in names] == [getattr(old, name) for name in names]


def planned(admin: Admin, wanted: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """What is to be done for the topic of events alone."""
    monkeypatch.setattr(topics, "specs", lambda pipelines: specs(pipelines)[:1])
    made = Plan()
    topics._plan_topics(cast("AdminClient", admin), [wanted], 3, made)
    assert admin.calls == []
    return made


def test_nothing_is_changed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(Admin(3, "7d"), pipeline(), monkeypatch) == Plan(as_declared=1)


def test_partitions_grow_and_retention_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(admin := Admin(3, "7d"), pipeline(5, "1d"), monkeypatch)
    assert [change.what for change in made.changes] == [
        "topic iris: 3 → 5 partitions",
        "topic iris: retention.ms 604800000 → 86400000",
    ]
    for change in made.changes:
        change.make(cast("AdminClient", admin))
    (grow, partitions), (alter, resource) = admin.calls
    assert (grow, partitions.new_total_count) == ("create_partitions", 5)
    assert alter == "incremental_alter_configs"
    assert [(entry.name, entry.value) for entry in resource.incremental_configs] == [("retention.ms", "86400000")]


def test_partitions_never_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(Admin(4, "7d"), pipeline(3), monkeypatch)
    assert made.changes == []
    (refused,) = made.refused
    assert refused.startswith("topic iris has 4 partitions, the declaration asks for 3: Kafka cannot")


def test_replicas_are_not_changed_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other settings follow the replicas that it has."""
    made = planned(Admin(3, "7d", replicas=1), pipeline(), monkeypatch)
    assert made.changes == []
    assert made.kept == ["topic iris: 1 replicas kept, new ones get 3: docs/how-to/kafka.md says how to move it"]


def test_a_topic_that_is_not_declared_any_more_is_kept_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("iris.dead", "wine", "wine.dead", "wine.review", "somebody-elses", "also.dead")
    made = planned(Admin(3, "7d", more=more), pipeline(), monkeypatch)
    assert made.changes == []
    named = {line.split(":")[0] for line in made.kept}
    # Of what the declaration has, the test looks at the topic of events alone.
    assert named == {"topic iris.dead", "topic wine", "topic wine.dead", "topic wine.review"}
    assert all("no pipeline declares it" in line for line in made.kept)


def test_kafka_that_does_not_answer_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "_REQUEST_SECONDS", 0.5)
    kafka = KafkaSettings(bootstrap="127.0.0.1:1", protocol="PLAINTEXT")
    with pytest.raises(TopicsError, match=r"127\.0\.0\.1:1: .*gave up after 0 s"):
        topics.apply(kafka, {"iris": pipeline()}, [], timeout=0, report=lambda _: None)


def test_acl_names_are_the_ones_kafka_knows() -> None:
    assert ResourceType.BROKER.value == 4  # "cluster" in Kafka's protocol
    assert AclOperation.IDEMPOTENT_WRITE.value == 12
    assert ResourcePatternType.PREFIXED.value == 4
