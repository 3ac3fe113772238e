"""One real broker by TLS: all of its listeners, with a certificate out of a Secret."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from levada.cluster.pki import SERVER, Authority
from levada.ingest import topics
from levada.pipeline import parse_pipeline

from .brokers import Brokers, running

VALUES = {"global": {"kafka": {"tls": {"existingSecret": "kafka-tls"}}}}


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    folder: Path = tmp_path_factory.mktemp("tls")
    (folder / "tls").mkdir()
    Authority(folder / "tls", "ca").issue("tls", name="broker", usage=SERVER, hosts=(IPv4Address("127.0.1.1"),))
    yield from running(folder, VALUES, 1)


@pytest.mark.row(15, process=True, part="by TLS")
def test_a_client_that_knows_the_authority_is_let_in_and_no_other(kafka: Brokers) -> None:
    declared = {"plants": parse_pipeline({"fields": {"n": {"type": "long"}}}, "plants")}
    topics.apply(kafka.settings("admin"), declared, kafka.users(), timeout=60, report=print)
    assert kafka.produce("collector", "plants", b"1") is None
    assert [message.value() for message in kafka.read("plants", "loader")] == [b"1"]
    trusting = kafka.client("collector")
    del trusting["ssl.ca.location"]
    in_clear = {**trusting, "security.protocol": "SASL_PLAINTEXT"}
    for client in (trusting, in_clear):
        with pytest.raises(KafkaException):
            AdminClient({**client, "error_cb": lambda _: None}).list_topics(timeout=3)
