"""What Kafka must hold before events flow: topics as declared, a SCRAM user a client, and each client's rights.

Everything is compared first and changed only where it differs, so the same command runs at every rollout and every
few minutes against drift, and a plan is what it would do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from levada.config import KafkaSettings, read_secret
from levada.errors import UserError
from levada.pipeline import Pipeline, seconds

MAX_MESSAGE_BYTES: Final = 10 * 1024 * 1024
HEADER_ROOM: Final = 65_536
"""A dead letter, or an event for review, is the message plus headers that say why."""

_ITERATIONS: Final = 8192
_REQUEST_SECONDS: Final = 15.0
_LOGIN_SECONDS: Final = 5.0
_CLUSTER: Final = "kafka-cluster"

Report = Callable[[str], None]
"""Takes one line on one object."""


class TopicsError(UserError):
    """Something that Kafka does not allow or did not do; the message says what and why."""


@dataclass(frozen=True)
class User:
    """A client of Kafka: the role it plays in the line, and its credentials."""

    client: str
    name: str
    password: str | None
    """None: an external Kafka made the user; it gets rights only."""


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it should be."""

    name: str
    partitions: int
    retention_ms: int
    max_message_bytes: int

    def config(self, replicas: int) -> dict[str, str]:
        """Topic settings in Kafka's names."""
        return {
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(self.max_message_bytes),
            "min.insync.replicas": str(max(1, replicas - 1)),
        }


@dataclass(frozen=True)
class Change:
    """One thing that Kafka does not have as declared."""

    what: str
    """What is done about it, in the present tense."""
    make: Callable[[AdminClient], None]


@dataclass
class Plan:
    """What is to be done, and what is left alone with the reason."""

    changes: list[Change] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What is declared and cannot be had."""
    kept: list[str] = field(default_factory=list)
    """What is there, is not as declared, and is for an operator to decide."""
    as_declared: int = 0
    """Topics, users and rights that need nothing."""


def users_in(folder: Path) -> list[User]:
    """The users of a folder with one subfolder a client: ``username``, and ``password`` if the user is ours to make."""
    if not folder.is_dir():
        return []
    return [
        User(
            path.name,
            read_secret(path / "username"),
            read_secret(path / "password") if (path / "password").exists() else None,
        )
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    ]


def specs(pipelines: Iterable[Pipeline]) -> list[TopicSpec]:
    """The topics that these pipelines need: for events and logged predictions, for the dead letters of both, and for
    review where there is a screen."""
    return [
        TopicSpec(name, stream.topic.partitions, int(seconds(stream.topic.retention) * 1000), MAX_MESSAGE_BYTES + room)
        for stream in _streams(pipelines)
        for name, room in (
            (stream.topic_name, 0),
            (stream.dead_topic, HEADER_ROOM),
            *([(stream.review_topic, HEADER_ROOM)] if stream.screen else []),
        )
    ]


def _streams(pipelines: Iterable[Pipeline]) -> list[Pipeline]:
    return [stream for pipeline in pipelines if pipeline.enabled for stream in pipeline.streams]


def rights(users: Iterable[User], pipelines: Iterable[Pipeline]) -> list[AclBinding]:
    """What each client may do; whatever is not listed is refused."""
    active = [pipeline for pipeline in pipelines if pipeline.enabled]
    streams = _streams(active)
    logged = [pipeline.predictions for pipeline in active if pipeline.predictions is not None]
    screened = [pipeline for pipeline in active if pipeline.screen]
    wanted: list[AclBinding] = []
    for user in users:

        def allow(
            kind: ResourceType,
            name: str,
            *operations: AclOperation,
            pattern: ResourcePatternType = ResourcePatternType.LITERAL,
            principal: str = f"User:{user.name}",
        ) -> None:
            wanted.extend(
                AclBinding(kind, name, pattern, principal, "*", operation, AclPermissionType.ALLOW)
                for operation in operations
            )

        match user.client:
            case "collector":
                for pipeline in active:
                    allow(ResourceType.TOPIC, pipeline.topic_name, AclOperation.WRITE, AclOperation.DESCRIBE)
                for pipeline in screened:
                    allow(ResourceType.TOPIC, pipeline.review_topic, AclOperation.WRITE, AclOperation.DESCRIBE)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.IDEMPOTENT_WRITE)
            case "sink":
                for stream in streams:
                    allow(ResourceType.TOPIC, stream.topic_name, AclOperation.READ, AclOperation.DESCRIBE)
                    allow(ResourceType.TOPIC, stream.dead_topic, AclOperation.WRITE, AclOperation.DESCRIBE)
                allow(ResourceType.GROUP, "levada-sink-", AclOperation.READ, pattern=ResourcePatternType.PREFIXED)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.IDEMPOTENT_WRITE)
            case "predictor":
                for stream in logged:
                    allow(ResourceType.TOPIC, stream.topic_name, AclOperation.WRITE, AclOperation.DESCRIBE)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.IDEMPOTENT_WRITE)
            case "loader":
                for pipeline in active:
                    allow(ResourceType.TOPIC, pipeline.topic_name, AclOperation.READ, AclOperation.DESCRIBE)
                allow(ResourceType.GROUP, "levada-load-", AclOperation.READ, pattern=ResourcePatternType.PREFIXED)
            case "admin":
                # It releases what was held for review, and replays dead letters.
                for stream in streams:
                    held = [stream.dead_topic, *([stream.review_topic] if stream.screen else [])]
                    for name in (stream.topic_name, *held):
                        allow(ResourceType.TOPIC, name, AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE)
                for group in ("levada-review-", "levada-dead-"):
                    allow(ResourceType.GROUP, group, AclOperation.READ, pattern=ResourcePatternType.PREFIXED)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.IDEMPOTENT_WRITE)
            case "metrics":
                allow(ResourceType.TOPIC, "*", AclOperation.DESCRIBE)
                allow(ResourceType.GROUP, "*", AclOperation.DESCRIBE)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.DESCRIBE)
            case other:
                raise TopicsError(
                    f"Kafka user {other} is none of collector, sink, predictor, loader, admin, metrics: "
                    "take its folder away"
                )
    return wanted


def plan(
    kafka: KafkaSettings, pipelines: Mapping[str, Pipeline], users: list[User], *, timeout: float, report: Report
) -> Plan:
    """What :func:`apply` would do; asks Kafka until it answers, for ``timeout`` seconds.

    Raises:
        TopicsError: it did not answer in time.
    """
    return _insist(kafka, lambda admin: _plan(admin, kafka, pipelines, users), timeout, report)


def apply(
    kafka: KafkaSettings, pipelines: Mapping[str, Pipeline], users: list[User], *, timeout: float, report: Report
) -> None:
    """Make Kafka as declared; try again until it answers, for ``timeout`` seconds.

    Raises:
        TopicsError: it did not answer in time, or what is declared cannot be had, such as fewer partitions; all else
            was done.
    """

    def make(admin: AdminClient) -> Plan:
        todo = _plan(admin, kafka, pipelines, users)
        for change in todo.changes:
            change.make(admin)
            report(change.what)
        return todo

    done = _insist(kafka, make, timeout, report)
    for line in done.kept:
        report(line)
    report(f"{done.as_declared} topics, users and rights were as declared, {len(done.changes)} changes were made")
    if done.refused:
        raise TopicsError("\n".join(done.refused))


def _insist(kafka: KafkaSettings, act: Callable[[AdminClient], Plan], timeout: float, report: Report) -> Plan:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return act(AdminClient({**kafka.client(), "logger": logging.getLogger("librdkafka")}))
        except KafkaException as error:
            problem = error.args[0].str()
            if time.monotonic() >= deadline:
                raise TopicsError(f"Kafka at {kafka.bootstrap}: {problem} (gave up after {timeout:.0f} s)") from error
            report(f"Kafka at {kafka.bootstrap}: {problem}; trying again")
            time.sleep(2)


def _plan(admin: AdminClient, kafka: KafkaSettings, pipelines: Mapping[str, Pipeline], users: list[User]) -> Plan:
    made = Plan()
    everyone = list(users)
    if kafka.credentials is not None:
        everyone.append(User("admin", read_secret(kafka.credentials / "username"), None))
    # Rights first: a client that can log in and may not yet produce takes that as final.
    _plan_rights(admin, rights(everyone, pipelines.values()), everyone, made)
    _plan_users(admin, kafka, users, made)
    _plan_topics(admin, pipelines.values(), kafka.replication_factor, made)
    return made


def _plan_users(admin: AdminClient, kafka: KafkaSettings, users: list[User], made: Plan) -> None:
    ours = [(user, user.password.encode()) for user in users if user.password is not None]
    if not ours:
        return
    present = admin.describe_user_scram_credentials([user.name for user, _ in ours], request_timeout=_REQUEST_SECONDS)
    for user, password in ours:
        if _has_scram(present[user.name]) and _can_log_in(kafka, user):
            made.as_declared += 1
            continue
        upsertion = UserScramCredentialUpsertion(
            user.name, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _ITERATIONS), password
        )

        def make(admin: AdminClient, upsertion: UserScramCredentialUpsertion = upsertion) -> None:
            _results(admin.alter_user_scram_credentials([upsertion], request_timeout=_REQUEST_SECONDS))

        made.changes.append(Change(f"user {user.name}: set the password", make))


def _has_scram(description: Future[Any]) -> bool:
    try:
        infos = description.result().scram_credential_infos
    except KafkaException as error:
        if error.args[0].code() == KafkaError.RESOURCE_NOT_FOUND:
            return False
        raise
    return any(info.mechanism == ScramMechanism.SCRAM_SHA_512 for info in infos)


def _can_log_in(kafka: KafkaSettings, user: User) -> bool:
    """Whether the password is the one Kafka has; Kafka tells no digest, so this is found out by trying."""
    login = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": user.name, "sasl.password": user.password}
    client = AdminClient({**kafka.client(), **login, "log_level": 0, "error_cb": lambda _: None})
    try:
        client.list_topics(timeout=_LOGIN_SECONDS)
    except KafkaException:
        return False
    return True


def surplus(present: Iterable[AclBinding], wanted: Iterable[AclBinding], users: Iterable[User]) -> list[AclBinding]:
    """What these users may do though nothing declared needs it, in a fixed order.

    It is about nobody else, and not about the admin, who may do anything without being told so, or has rights from
    whoever runs an external Kafka. What is denied was never Levada's and stays.
    """
    ours = {f"User:{user.name}" for user in users if user.client != "admin"}
    ours -= {f"User:{user.name}" for user in users if user.client == "admin"}
    needed = set(wanted)
    found = (
        acl
        for acl in present
        if acl.principal in ours and acl.permission_type is AclPermissionType.ALLOW and acl not in needed
    )
    return sorted(found, key=lambda acl: (acl.principal, acl.restype.name, acl.name, acl.operation.name, acl.host))


def _plan_rights(admin: AdminClient, wanted: list[AclBinding], users: list[User], made: Plan) -> None:
    if not wanted:
        return
    everything = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    present = set(admin.describe_acls(everything, request_timeout=_REQUEST_SECONDS).result())
    for binding in wanted:
        if binding in present:
            made.as_declared += 1
            continue

        def make(admin: AdminClient, binding: AclBinding = binding) -> None:
            _results(admin.create_acls([binding], request_timeout=_REQUEST_SECONDS))

        made.changes.append(Change(f"{binding.principal}: allow {_right(binding)}", make))
    # A user of an external Kafka may have rights that others gave it, and nothing tells them from ours.
    foreign = {f"User:{user.name}" for user in users if user.password is None}
    for binding in surplus(present, wanted, users):
        if binding.principal in foreign:
            made.kept.append(
                f"{binding.principal}: may {_right(binding)}, though nothing declared needs it; "
                "take it back by hand if nobody else does"
            )
            continue

        def take_back(admin: AdminClient, binding: AclBinding = binding) -> None:
            exactly = AclBindingFilter(
                binding.restype, binding.name, binding.resource_pattern_type, binding.principal, binding.host,
                binding.operation, binding.permission_type,
            )  # fmt: skip
            _results(admin.delete_acls([exactly], request_timeout=_REQUEST_SECONDS))

        made.changes.append(Change(f"{binding.principal}: no longer allow {_right(binding)}", take_back))


def _right(binding: AclBinding) -> str:
    kind = "cluster" if binding.restype is ResourceType.BROKER else binding.restype.name.lower()
    every = "…" if binding.resource_pattern_type is ResourcePatternType.PREFIXED else ""
    return f"{binding.operation.name} on {kind} {binding.name}{every}"


def _plan_topics(admin: AdminClient, pipelines: Iterable[Pipeline], replicas: int, made: Plan) -> None:
    wanted = {spec.name: spec for spec in specs(pipelines)}
    listing = admin.list_topics(timeout=_REQUEST_SECONDS)
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in wanted if name in listing.topics]
    present = admin.describe_configs(resources, request_timeout=_REQUEST_SECONDS) if resources else {}
    configs = {resource.name: future.result() for resource, future in present.items()}
    for name, spec in wanted.items():
        if name not in listing.topics:
            made.changes.append(_creation(spec, replicas))
            continue
        partitions = listing.topics[name].partitions
        before = len(made.changes) + len(made.refused)
        if len(partitions) > spec.partitions:
            made.refused.append(
                f"topic {name} has {len(partitions)} partitions, the declaration asks for {spec.partitions}: "
                f"Kafka cannot take partitions away, set topic.partitions to {len(partitions)} or more"
            )
        elif len(partitions) < spec.partitions:
            made.changes.append(_growth(spec, len(partitions)))
        # Copies are those the topic has: to move a topic onto more brokers is a migration, and not done silently.
        has = min(len(partition.replicas) for partition in partitions.values())
        if has != replicas:
            made.kept.append(
                f"topic {name}: {has} replicas kept, new ones get {replicas}: docs/how-to/kafka.md says how to move it"
            )
        config = spec.config(has)
        different = {key: value for key, value in config.items() if configs[name][key].value != value}
        if different:
            made.changes.append(_setting(name, different, {key: configs[name][key].value for key in different}))
        if len(made.changes) + len(made.refused) == before:
            made.as_declared += 1
    made.kept += [
        f"topic {name}: not deleted, though no pipeline declares it; delete it by hand if its events are not needed"
        for name in _abandoned(set(listing.topics), set(wanted))
    ]


def _abandoned(there: set[str], wanted: set[str]) -> list[str]:
    """Topics of pipelines that are gone: those with a topic for dead letters beside them are the line's own."""
    mains = {name.removesuffix(".dead") for name in there if name.endswith(".dead")} & there
    ours = {name for main in mains for name in (main, f"{main}.dead", f"{main}.review")}
    return sorted((ours & there) - wanted)


def _creation(spec: TopicSpec, replicas: int) -> Change:
    def make(admin: AdminClient) -> None:
        topic = NewTopic(spec.name, spec.partitions, replicas, config=spec.config(replicas))
        _results(admin.create_topics([topic], request_timeout=_REQUEST_SECONDS))

    return Change(f"topic {spec.name}: create with {spec.partitions} partitions, {replicas} replicas", make)


def _growth(spec: TopicSpec, partitions: int) -> Change:
    def make(admin: AdminClient) -> None:
        grown = NewPartitions(spec.name, spec.partitions)
        _results(admin.create_partitions([grown], request_timeout=_REQUEST_SECONDS))

    return Change(f"topic {spec.name}: {partitions} → {spec.partitions} partitions", make)


def _setting(topic: str, values: dict[str, str], before: Mapping[str, str]) -> Change:
    def make(admin: AdminClient) -> None:
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in values.items()
        ]
        change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        _results(admin.incremental_alter_configs([change], request_timeout=_REQUEST_SECONDS))

    changed = ", ".join(f"{name} {before[name]} → {value}" for name, value in values.items())
    return Change(f"topic {topic}: {changed}", make)


def _results(futures: Mapping[Any, Future[Any]]) -> list[Any]:
    return [future.result() for future in futures.values()]
