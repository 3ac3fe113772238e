"""librdkafka's mock cluster in a process of its own, so that it can be held up and killed like a broker."""

from __future__ import annotations

import signal
import subprocess
import sys

from confluent_kafka import Consumer, Message, Producer, TopicPartition

_HOST = """
import sys
from confluent_kafka import Producer
host = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
broker = next(iter(host.list_topics(timeout=10).brokers.values()))
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""
PARTITIONS = range(4)  # what the mock cluster gives a new topic


class MockKafka:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.bootstrap = self._process.stdout.readline().strip()

    def make_topic(self, name: str) -> None:
        """The mock cluster makes a topic when it is asked about by name."""
        Producer({"bootstrap.servers": self.bootstrap}).list_topics(name, timeout=10)

    def topics(self) -> set[str]:
        return set(Producer({"bootstrap.servers": self.bootstrap}).list_topics(timeout=10).topics)

    def messages(self, topic: str) -> list[Message]:
        """All that was ever produced to a topic, by partition and offset."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "test"})
        places = [TopicPartition(topic, partition, 0) for partition in PARTITIONS]
        count = sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
        consumer.assign(places)
        found: list[Message] = consumer.consume(count, 10) if count else []
        consumer.close()
        assert len(found) == count
        return sorted(found, key=lambda message: (message.partition(), message.offset()))

    def end(self, topic: str, partition: int) -> int:
        """Messages that were ever produced to a partition, also those that it keeps no longer."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "test"})
        end: int = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
        consumer.close()
        return end

    def hold(self) -> None:
        """No answer any more, connections stay."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
