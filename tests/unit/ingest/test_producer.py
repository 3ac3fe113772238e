"""The producer outlives librdkafka's client."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import queue
import threading
import time
from importlib.metadata import files
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from levada.config import Settings, required
from levada.ingest import producer as module
from levada.ingest.producer import AckProducer, NotAcknowledged, Receipt

from .kafka import MockKafka


class Ended:
    """A client that has met an error it cannot go on from, as librdkafka's shows it."""

    def __init__(self, gone: queue.SimpleQueue[str]) -> None:
        self.gone = gone

    def __del__(self) -> None:
        self.gone.put(threading.current_thread().name)

    def list_topics(self, **_: float) -> Any:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def poll(self, _: float) -> int:
        raise KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "no rights yet", fatal=True))


def test_a_client_that_ended_is_replaced(kafka: MockKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = itertools.count()
    gone: queue.SimpleQueue[str] = queue.SimpleQueue()

    def make(config: dict[str, Any]) -> Any:
        return Ended(gone) if next(made) == 0 else Producer(config)

    monkeypatch.setattr(module, "Producer", make)
    monkeypatch.setattr(module, "_LET_GO_SECONDS", 0.5)

    async def send() -> int:
        loop = asyncio.get_running_loop()
        producer = AckProducer(required(settings.kafka, "kafka"), settings.collector, loop)
        try:
            assert not producer.reachable
            early = await producer.send("plain", b"{}", "k", [])
            assert early == NotAcknowledged("unreachable", "no broker answers")
            while not producer.reachable:
                await asyncio.sleep(0.05)
            receipt = await producer.send("plain", b"{}", "k", [("event-id", "1")])
            assert producer.alive
            assert isinstance(receipt, Receipt)
            return receipt.offset
        finally:
            await producer.close()

    assert asyncio.run(asyncio.wait_for(send(), 20)) >= 0
    # To end a client may take for ever, so that is for a thread on which nothing waits.
    assert gone.get(timeout=5) == "old-client"


def test_a_stall_is_over_as_soon_as_kafka_answers(kafka: MockKafka, settings: Settings) -> None:
    async def send() -> tuple[object, float]:
        producer = AckProducer(required(settings.kafka, "kafka"), settings.collector, asyncio.get_running_loop())
        try:
            while not producer.reachable:
                await asyncio.sleep(0.05)
            assert isinstance(await producer.send("plain", b"{}", "k", []), Receipt)
            kafka.hold()
            begin = time.monotonic()
            outcome = await producer.send("plain", b"{}", "k", [])
            assert time.monotonic() - begin < 1
            assert not producer.reachable
            kafka.go_on()
            begin = time.monotonic()
            while not producer.reachable:
                await asyncio.sleep(0.01)
            return outcome, time.monotonic() - begin
        finally:
            await producer.close()

    outcome, seconds = asyncio.run(asyncio.wait_for(send(), 20))
    assert isinstance(outcome, NotAcknowledged)
    assert outcome.kind == "failed"  # it may be written: by now it is
    assert seconds < 1.5


def test_an_event_that_kafka_has_already_is_acknowledged_without_its_place(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    """A broker that no longer knows the batch says DUPLICATE_SEQUENCE_NUMBER, and not where the batch is."""
    mock = Faulty()
    request.addfinalizer(mock.close)
    kafka = required(settings.kafka, "kafka").model_copy(update={"bootstrap": mock.bootstrap})

    async def send() -> list[object]:
        producer = AckProducer(kafka, settings.collector, asyncio.get_running_loop())
        try:
            while not producer.reachable:
                await asyncio.sleep(0.05)
            first = await producer.send("plain", b"{}", "k", [])
            mock.fail_next_produce(KafkaError.DUPLICATE_SEQUENCE_NUMBER)
            return [first, await producer.send("plain", b"{}", "k", [])]
        finally:
            await producer.close()

    first, second = asyncio.run(asyncio.wait_for(send(), 20))
    assert isinstance(first, Receipt)
    assert second == Receipt(first.partition, None)


def test_events_with_an_empty_key_keep_their_order(kafka: MockKafka, settings: Settings) -> None:
    async def send() -> set[int]:
        producer = AckProducer(required(settings.kafka, "kafka"), settings.collector, asyncio.get_running_loop())
        try:
            while not producer.reachable:
                await asyncio.sleep(0.05)
            outcomes = [await producer.send("plain", b"{}", "", []) for _ in range(12)]
        finally:
            await producer.close()
        return {outcome.partition for outcome in outcomes if isinstance(outcome, Receipt)}

    assert len(asyncio.run(asyncio.wait_for(send(), 20))) == 1


def test_a_producer_that_cannot_give_up_is_not_alive(
    kafka: MockKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async def look() -> tuple[bool, bool]:
        producer = AckProducer(required(settings.kafka, "kafka"), settings.collector, asyncio.get_running_loop())
        try:
            before = producer.alive
            monkeypatch.setattr(AckProducer, "_look_for_stuck", fail)
            await asyncio.sleep(0.5)
            return before, producer.alive
        finally:
            await producer.close()

    assert asyncio.run(asyncio.wait_for(look(), 20)) == (True, False)


class Faulty:
    """librdkafka's mock cluster by its C interface, which alone can be told to answer with an error."""

    def __init__(self) -> None:
        library = next(path for path in files("confluent-kafka") or [] if path.name.startswith("librdkafka-"))
        self._library = ctypes.CDLL(str(library.locate()))
        self._library.rd_kafka_new.restype = ctypes.c_void_p
        self._library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
        self._library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        self._host = ctypes.c_void_p(self._library.rd_kafka_new(0, None, None, 0))
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._host, 1))
        self.bootstrap = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._library.rd_kafka_mock_topic_create(self._cluster, b"plain", 1, 1)

    def fail_next_produce(self, error: int) -> None:
        produce, errors = ctypes.c_int16(0), (ctypes.c_int * 1)(error)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, produce, ctypes.c_size_t(1), errors)

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._host)
