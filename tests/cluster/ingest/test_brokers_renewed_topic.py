"""The collector's producer and a topic that is deleted and made again while events come in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import NewTopic

from levada.config import CollectorSettings
from levada.ingest.producer import AckProducer, Receipt

from .brokers import Brokers, running, until

TOPIC = "renewed"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    yield from running(tmp_path_factory.mktemp("kafka"), {"ingest": {"kafka": {"replicas": 3}}})


def make(kafka: Brokers) -> None:
    admin = kafka.admin
    until(lambda: TOPIC not in admin.list_topics(timeout=10).topics, 30, "the end of the topic")
    admin.create_topics([NewTopic(TOPIC, 3, 3)])[TOPIC].result(30)


def restart(kafka: Brokers) -> None:
    for node in range(3):
        kafka.stop(node)
        kafka.start(node)
        kafka.wait_in_sync(node)


async def post(kafka: Brokers, rounds: int, renew_every: int) -> tuple[int, float]:
    """Send events in batches as the collector does; how many were acknowledged, and the longest wait for one."""
    producer = AckProducer(kafka.settings("admin"), CollectorSettings(), asyncio.get_running_loop())
    count, longest, last = 0, 0.0, time.monotonic()
    try:
        for number in range(rounds):
            if number % renew_every == renew_every - 1:
                # Leaders that changed have left a higher leader epoch behind than the new topic begins with.
                await asyncio.to_thread(restart, kafka)
                await asyncio.to_thread(kafka.admin.delete_topics([TOPIC])[TOPIC].result, 30)
                await asyncio.to_thread(make, kafka)
            last = time.monotonic()
            while True:
                outcomes = await asyncio.gather(*(producer.send(TOPIC, b"{}", str(key), []) for key in range(250)))
                if all(isinstance(outcome, Receipt) for outcome in outcomes):
                    break
                assert time.monotonic() - last < 60, outcomes[0]
                await asyncio.sleep(0.2)
            count += len(outcomes)
            longest = max(longest, time.monotonic() - last)
    finally:
        await producer.close()
    return count, longest


@pytest.mark.row(20, process=True, part="the collector goes on")
def test_events_are_acknowledged_again_soon_after(kafka: Brokers) -> None:
    make(kafka)
    count, longest = asyncio.run(post(kafka, 30, 15))
    print(f"{count} events, the longest wait {longest:.1f} s")
    assert count == 30 * 250
    assert longest < 10
