"""What Kafka must hold before events flow: topics as declared, a SCRAM user a client, and each client's rights.

Everything is compared first and changed only where it differs, so the same command runs at every rollout and every
few minutes against drift.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
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
DEAD_LETTER_ROOM: Final = 65_536
"""A dead letter is the refused message plus headers that say why."""

_ITERATIONS: Final = 8192
_REQUEST_SECONDS: Final = 15.0
_LOGIN_SECONDS: Final = 5.0
_MAX_REPLICAS: Final = 3
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
    """The topics that these pipelines need: one for events and one for dead letters each."""
    return [
        TopicSpec(
            name, pipeline.topic.partitions, int(seconds(pipeline.topic.retention) * 1000), MAX_MESSAGE_BYTES + room
        )
        for pipeline in pipelines
        if pipeline.enabled
        for name, room in ((pipeline.topic_name, 0), (pipeline.dead_topic, DEAD_LETTER_ROOM))
    ]


def rights(users: Iterable[User], pipelines: Iterable[Pipeline]) -> list[AclBinding]:
    """What each client may do; whatever is not listed is refused."""
    topics = [(pipeline.topic_name, pipeline.dead_topic) for pipeline in pipelines if pipeline.enabled]
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
                for topic, _ in topics:
                    allow(ResourceType.TOPIC, topic, AclOperation.WRITE, AclOperation.DESCRIBE)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.IDEMPOTENT_WRITE)
            case "sink":
                for topic, dead in topics:
                    allow(ResourceType.TOPIC, topic, AclOperation.READ, AclOperation.DESCRIBE)
                    allow(ResourceType.TOPIC, dead, AclOperation.WRITE, AclOperation.DESCRIBE)
                allow(ResourceType.GROUP, "levada-sink-", AclOperation.READ, pattern=ResourcePatternType.PREFIXED)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.IDEMPOTENT_WRITE)
            case "metrics":
                allow(ResourceType.TOPIC, "*", AclOperation.DESCRIBE)
                allow(ResourceType.GROUP, "*", AclOperation.DESCRIBE)
                allow(ResourceType.BROKER, _CLUSTER, AclOperation.DESCRIBE)
            case other:
                raise TopicsError(f"Kafka user {other} is none of collector, sink, metrics: take its folder away")
    return wanted


def apply(
    kafka: KafkaSettings, pipelines: Mapping[str, Pipeline], users: list[User], *, timeout: float, report: Report
) -> None:
    """Make Kafka as declared; try again until it answers, for ``timeout`` seconds.

    Raises:
        TopicsError: it did not answer in time, or what is declared cannot be had, such as fewer partitions.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            admin = AdminClient({**kafka.client(), "logger": logging.getLogger("librdkafka")})
            # Rights first: a client that can log in and may not yet produce takes that as final.
            _apply_rights(admin, rights(users, pipelines.values()), report)
            _apply_users(admin, kafka, users, report)
            _apply_topics(admin, specs(pipelines.values()), report)
            return
        except KafkaException as error:
            problem = error.args[0].str()
            if time.monotonic() >= deadline:
                raise TopicsError(f"Kafka at {kafka.bootstrap}: {problem} (gave up after {timeout:.0f} s)") from error
            report(f"Kafka at {kafka.bootstrap}: {problem}; trying again")
            time.sleep(2)


def _apply_users(admin: AdminClient, kafka: KafkaSettings, users: list[User], report: Report) -> None:
    ours = [(user, user.password.encode()) for user in users if user.password is not None]
    if not ours:
        return
    present = admin.describe_user_scram_credentials([user.name for user, _ in ours], request_timeout=_REQUEST_SECONDS)
    for user, password in ours:
        if _has_scram(present[user.name]) and _can_log_in(kafka, user):
            report(f"user {user.name}: unchanged")
            continue
        upsertion = UserScramCredentialUpsertion(
            user.name, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _ITERATIONS), password
        )
        _results(admin.alter_user_scram_credentials([upsertion], request_timeout=_REQUEST_SECONDS))
        report(f"user {user.name}: password set")


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


def _apply_rights(admin: AdminClient, wanted: list[AclBinding], report: Report) -> None:
    if not wanted:
        return
    everything = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    present = set(admin.describe_acls(everything, request_timeout=_REQUEST_SECONDS).result())
    missing = [binding for binding in wanted if binding not in present]
    if missing:
        _results(admin.create_acls(missing, request_timeout=_REQUEST_SECONDS))
    for binding in missing:
        kind = "cluster" if binding.restype is ResourceType.BROKER else binding.restype.name.lower()
        report(f"right {binding.principal} {binding.operation.name} on {kind} {binding.name}: created")
    report(f"rights: {len(wanted) - len(missing)} unchanged")


def _apply_topics(admin: AdminClient, wanted: list[TopicSpec], report: Report) -> None:
    listing = admin.list_topics(timeout=_REQUEST_SECONDS)
    replicas = min(_MAX_REPLICAS, len(listing.brokers))
    refused = []
    for spec in wanted:
        present = listing.topics.get(spec.name)
        if present is None:
            topic = NewTopic(spec.name, spec.partitions, replicas, config=spec.config(replicas))
            _results(admin.create_topics([topic], request_timeout=_REQUEST_SECONDS))
            report(f"topic {spec.name}: created with {spec.partitions} partitions, {replicas} replicas")
            continue
        partitions = len(present.partitions)
        if partitions > spec.partitions:
            refused.append(
                f"topic {spec.name} has {partitions} partitions, the declaration asks for {spec.partitions}: "
                f"Kafka cannot take partitions away, set topic.partitions to {partitions} or more"
            )
        elif partitions < spec.partitions:
            grown = NewPartitions(spec.name, spec.partitions)
            _results(admin.create_partitions([grown], request_timeout=_REQUEST_SECONDS))
            report(f"topic {spec.name}: {partitions} → {spec.partitions} partitions")
        # Replicas are those the topic has: moving a topic to more brokers is a migration, not an update.
        has_replicas = min(len(partition.replicas) for partition in present.partitions.values())
        _apply_config(admin, spec.name, spec.config(has_replicas), report)
    if refused:
        raise TopicsError("\n".join(refused))


def _apply_config(admin: AdminClient, topic: str, wanted: dict[str, str], report: Report) -> None:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    present = _results(admin.describe_configs([resource], request_timeout=_REQUEST_SECONDS))[0]
    changes = {name: value for name, value in wanted.items() if present[name].value != value}
    if not changes:
        report(f"topic {topic}: settings unchanged")
        return
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in changes.items()]
    change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    _results(admin.incremental_alter_configs([change], request_timeout=_REQUEST_SECONDS))
    for name, value in changes.items():
        report(f"topic {topic}: {name} {present[name].value} → {value}")


def _results(futures: Mapping[Any, Future[Any]]) -> list[Any]:
    return [future.result() for future in futures.values()]
