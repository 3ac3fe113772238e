"""Numbered records through real brokers: how long each waited for its acknowledgement, and what is there in the end."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from random import Random

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import NewTopic

from .brokers import Brokers, until

ACKS = ("0", "1", "all")
SIZE = 1_000
_WARM_UP = 5_000
_NUMBER = 8
# Bytes that lz4 cannot make fewer.
_NOISE = Random(0).randbytes(1 << 20)
_GIVE_UP_SECONDS = 120


@dataclass(frozen=True)
class Run:
    """What became of the records of one run; its warm-up is not among them."""

    rate: float
    """Records a second, from the first record to the last report."""
    waits: list[float]
    """Milliseconds from when a record was due to its delivery report, in order of length."""
    failed: int
    """Records that the producer reported as failed."""
    lost: int
    """Records that the producer reported as delivered, and that are not in the topic."""
    twice: int
    """Copies beyond the first."""

    def wait(self, part: float) -> float:
        """Milliseconds within which this part of the records had their reports."""
        return self.waits[min(int(len(self.waits) * part), len(self.waits) - 1)]

    @property
    def mean(self) -> float:
        """Milliseconds."""
        return sum(self.waits) / len(self.waits)


def run(kafka: Brokers, acks: str, records: int, rate: float | None = None, *, kill: bool = False) -> Run:
    """Send records of SIZE bytes, ``rate`` a second or as fast as it goes; a broker may be killed at half of them.

    The producer is set like the collector's, with as much patience as a broker takes to be replaced. A record is due
    when the rate says so, without one when it is handed over, which includes the time for which the queue is full. A
    broker that was killed is back before the topic is read.
    """
    topic = f"acks-{acks}-{secrets.token_hex(4)}"
    kafka.admin.create_topics([NewTopic(topic, 3, 3, config={"min.insync.replicas": "2"})])[topic].result()
    until(lambda: -1 not in _leaders(kafka, topic), 30, "a leader of each partition")
    producer = Producer(
        kafka.client(
            "admin", acks=acks, enable_idempotence=acks == "all", compression_type="lz4", linger_ms=5,
            queue_buffering_max_kbytes=32_768, message_timeout_ms=_GIVE_UP_SECONDS * 1000,
            reconnect_backoff_ms=100, reconnect_backoff_max_ms=1000,
        )
    )  # fmt: skip
    waits: list[float] = []
    delivered: list[int] = []

    def report(number: int, due: float, error: KafkaError | None, message: Message) -> None:
        if error is None:
            waits.append((time.perf_counter() - due) * 1000)
            delivered.append(number)

    def send(number: int, due: float) -> None:
        start = number * 997 % (len(_NOISE) - SIZE)
        value = number.to_bytes(_NUMBER) + _NOISE[start : start + SIZE - _NUMBER]
        while True:
            try:
                producer.produce(topic, value, on_delivery=partial(report, number, due))
                return
            except BufferError:
                producer.poll(0.1)

    for number in range(records, records + _WARM_UP):
        send(number, time.perf_counter())
    assert producer.flush(60) == 0
    waits.clear()
    delivered.clear()
    killed = None
    begin = time.perf_counter()
    for number in range(records):
        due = time.perf_counter() if rate is None else begin + number / rate
        while time.perf_counter() < due:
            producer.poll(0.001)
        if kill and number == records // 2:
            killed = _leaders(kafka, topic)[0]
            kafka.kill(killed)
        send(number, due)
        producer.poll(0)
    assert producer.flush(_GIVE_UP_SECONDS + 10) == 0
    seconds = time.perf_counter() - begin
    if killed is not None:
        kafka.start(killed)
        kafka.wait_in_sync(*range(kafka.count))
    _settle(kafka, topic)
    found = Counter(int.from_bytes((message.value() or b"")[:_NUMBER]) for message in kafka.read(topic))
    kafka.admin.delete_topics([topic])[topic].result()
    return Run(
        rate=records / seconds,
        waits=sorted(waits),
        failed=records - len(delivered),
        lost=sum(number not in found for number in delivered),
        twice=sum(copies - 1 for number, copies in found.items() if number < records),
    )


def _leaders(kafka: Brokers, topic: str) -> list[int]:
    """The leader of each partition, -1 where there is none."""
    partitions = kafka.admin.list_topics(topic, timeout=10).topics[topic].partitions
    return [partitions[number].leader for number in range(3)] if len(partitions) == 3 else [-1]


def _settle(kafka: Brokers, topic: str) -> None:
    """Wait for what is still on its way: less than acks=all does not."""
    before, now = None, kafka.ends(topic)
    while now != before:
        time.sleep(1)
        before, now = now, kafka.ends(topic)
