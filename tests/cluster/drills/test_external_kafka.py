"""A second line beside the first, whose Kafka belongs to somebody else: here, to the first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from levada.line import install
from levada.line.demo import lake_state
from levada.line.install import write_values
from levada.line.target import Target

from ..conftest import Line, wait_for
from .conftest import as_admin

PIPELINE = "elsewhere"
USERS = ("admin", "collector", "sink", "metrics")
# What the owner of a Kafka does for us: users, and the right of one of them to make topics and rules.
OWNER = """
import json, secrets, sys
from confluent_kafka.admin import (
    AclBinding, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType, ScramCredentialInfo,
    ScramMechanism, UserScramCredentialUpsertion,
)
from levada.config import settings
admin = AdminClient(settings().kafka.client())
made = {name: secrets.token_hex(16) for name in sys.argv[1:]}
how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
users = [UserScramCredentialUpsertion(name, how, password.encode()) for name, password in made.items()]
rules = [
    AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{sys.argv[1]}", "*", AclOperation.ALL,
               AclPermissionType.ALLOW)
    for kind, name in ((ResourceType.BROKER, "kafka-cluster"), (ResourceType.TOPIC, "*"), (ResourceType.GROUP, "*"))
]
for future in [*admin.alter_user_scram_credentials(users).values(), *admin.create_acls(rules).values()]:
    future.result(30)
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def elsewhere(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A line in a namespace of its own without brokers."""
    target = replace(line.admin, namespace=PIPELINE)
    target.kubectl("create", "namespace", PIPELINE)
    try:
        passwords = as_admin(line, OWNER, *(f"{PIPELINE}-{user}" for user in USERS))
        for user in USERS:
            name = f"{PIPELINE}-{user}"
            data = {"username": name, "password": passwords[name]}
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"kafka-{user}"}, "stringData": data}
            target.kubectl("create", "-f", "-", stdin=json.dumps(secret))
        pipeline = {
            "key": "writer",
            "fields": {"writer": {"type": "string"}, "number": {"type": "long", "rule": "number >= 0"}},
            "topic": {"partitions": 3},
            "stream": {"commitEvery": "2s"},
        }
        off = {"enabled": False}
        values = {
            "global": {
                "kafka": {
                    "external": True,
                    "bootstrap": f"{line.target.name('kafka')}.{line.target.namespace}.svc:9092",
                    "protocol": "SASL_PLAINTEXT",
                    "mechanism": "SCRAM-SHA-512",
                    "users": {user: {"existingSecret": f"kafka-{user}"} for user in USERS},
                },
                "pipelines": {PIPELINE: pipeline},
            },
            "batch": off, "registry": off, "serving": off, "observability": off,
        }  # fmt: skip
        own = write_values(tmp_path_factory.mktemp(PIPELINE) / "values.yaml", values)
        nano = install.ROOT / "values" / "profiles" / "nano.yaml"
        install.install(target, [nano, line.values[-1], own], print)
        yield target
    finally:
        target.close()
        target.kubectl("delete", "namespace", PIPELINE, timeout=180)


def test_events_cross_a_kafka_of_somebody_else(elsewhere: Target) -> None:
    assert not elsewhere.objects("statefulsets", "app.kubernetes.io/component=kafka")
    url = f"{elsewhere.url(elsewhere.name('collector'), 8080)}/v1/{PIPELINE}/events"
    headers = {"Authorization": f"Bearer {elsewhere.secret('api-key', 'key')}"}
    wait_for(lambda: httpx.post(url, json={"writer": "w", "number": 1}, headers=headers).status_code == 202, 60)
    assert httpx.post(url, json={"writer": "w", "number": -1}, headers=headers).status_code == 422
    wait_for(lambda: lake_state(elsewhere, PIPELINE)[1] == 1, 120)
