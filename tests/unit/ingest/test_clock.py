"""The clock of a collector's machine is set forward and back while it runs: what is acknowledged is in Kafka, once."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.clock import Clock

from .collecting import API_KEY, Collecting
from .conftest import FIELDS, PIPELINES
from .kafka import MockKafka

HEADERS = {"Authorization": f"Bearer {API_KEY}"}
HOURS = 2 * 3600
EACH = 20
OFTEN = {"key": "user", "fields": FIELDS, "screen": {"often": {"rate": {"field": "user", "events": 5, "per": "1h"}}}}


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def collecting(clock: Clock, kafka: MockKafka, tmp_path: Path) -> Iterator[Collecting]:
    """A collector that runs by the clock."""
    pipelines = {"set": {"fields": FIELDS}, "timed": PIPELINES["timed"], "often": OFTEN}
    for topic in (*pipelines, "often.review"):
        kafka.make_topic(topic)
    collecting = Collecting(tmp_path, kafka.bootstrap, pipelines, **clock.environment)
    yield collecting
    collecting.process.kill()
    collecting.process.wait()


@pytest.mark.row(1, process=True, part="the clock is set")
@pytest.mark.timeout(90)
def test_the_clock_is_set_while_a_collector_runs(clock: Clock, collecting: Collecting, kafka: MockKafka) -> None:
    acknowledged: dict[str, int] = {}
    began = datetime.now(UTC)
    with httpx.Client(base_url=collecting.url, headers=HEADERS, timeout=10) as client:
        for ahead in (0, HOURS, 0, -HOURS, HOURS, -HOURS):
            clock.set(ahead)
            time.sleep(0.5)  # everything waits when the clock is set, and goes on waiting
            for _ in range(EACH):
                event_id = f"e{len(acknowledged)}"
                answer = client.post(
                    "/v1/set/events", json={"n": 1, "user": "u"}, headers={"Idempotency-Key": event_id}
                )
                assert answer.status_code == 202
                assert answer.elapsed.total_seconds() < 2
                acknowledged[event_id] = ahead
            # One in each hour that the clock shows, and six in this one: the rate is of the time that went by.
            assert client.post("/v1/often/events", json={"n": 1, "user": "u"}).status_code == 202
            # The time that an event states is measured against the collector's clock.
            stated = client.post("/v1/timed/events", json={"at": datetime.now(UTC).isoformat()})
            assert stated.status_code == (422 if ahead == -HOURS else 202)
    clock.set(-2 * HOURS)
    collecting.process.send_signal(signal.SIGTERM)
    assert collecting.process.wait(15) == 0
    found = [dict(message.headers()) for message in kafka.messages("set")]
    assert Counter(headers["event-id"].decode() for headers in found) == dict.fromkeys(acknowledged, 1)
    for headers in found:
        off = datetime.fromisoformat(headers["event-time"].decode()) - began
        ahead = acknowledged[headers["event-id"].decode()]
        assert timedelta(seconds=-1) < off - timedelta(seconds=ahead) < timedelta(minutes=1)
    assert (len(kafka.messages("often")), len(kafka.messages("often.review"))) == (5, 1)
