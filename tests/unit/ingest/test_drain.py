"""SIGTERM under load, with the real process: what was accepted is answered, and every 202 is in Kafka."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from .collecting import API_KEY, Collecting
from .conftest import FIELDS
from .kafka import MockKafka

HEADERS = {"Authorization": f"Bearer {API_KEY}"}
_CLIENTS = 16


def test_nothing_accepted_is_lost(tmp_path: Path, kafka: MockKafka) -> None:
    kafka.make_topic("drained")
    collecting = Collecting(tmp_path, kafka.bootstrap, {"drained": {"fields": FIELDS}})
    acknowledged: list[str] = []
    unanswered: list[str] = []
    refused_at: list[float] = []
    told_to_go = threading.Event()

    def post_on(number: int) -> None:
        with httpx.Client(base_url=collecting.url, headers=HEADERS, timeout=30) as client:
            for count in range(100_000):
                event_id = f"{number}-{count}"
                try:
                    answer = client.post(
                        "/v1/drained/events", json={"n": 1, "user": "u"}, headers={"Idempotency-Key": event_id}
                    )
                except httpx.ConnectError:
                    refused_at.append(time.monotonic())
                    return
                except httpx.TransportError:
                    unanswered.append(event_id)
                    continue
                assert answer.status_code in (202, 503)
                if answer.status_code == 202:
                    acknowledged.append(event_id)
                if answer.headers.get("connection") == "close":
                    told_to_go.set()

    threads = [threading.Thread(target=post_on, args=(number,)) for number in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    asked = time.monotonic()
    collecting.process.send_signal(signal.SIGTERM)
    assert collecting.process.wait(15) == 0
    for thread in threads:
        thread.join(30)
    assert len(acknowledged) > 100
    assert told_to_go.is_set()
    assert len(refused_at) == _CLIENTS
    assert min(refused_at) - asked > 0.5  # Kubernetes needs a while to send nobody here any more
    there = [dict(message.headers())["event-id"].decode() for message in kafka.messages("drained")]
    assert set(acknowledged) <= set(there)
    assert len(there) == len(set(there))
    assert not unanswered  # nor was a connection reset that the kernel had, and the process had not seen


@pytest.mark.parametrize("begun", ["waiting for Kafka", "sending its body"])
def test_what_has_begun_is_finished(tmp_path: Path, kafka: MockKafka, begun: str) -> None:
    kafka.make_topic("begun")
    collecting = Collecting(tmp_path, kafka.bootstrap, {"begun": {"fields": FIELDS}})
    answers: list[httpx.Response] = []
    go_on = threading.Event()

    def body() -> object:
        yield b'{"n": 1,'
        if begun == "sending its body":
            go_on.wait(10)
        yield b' "user": "u"}'

    def post() -> None:
        headers = {**HEADERS, "Content-Type": "application/json"}
        answers.append(httpx.post(f"{collecting.url}/v1/begun/events", content=body(), headers=headers, timeout=20))  # type: ignore[arg-type]

    if begun == "waiting for Kafka":
        kafka.hold()
    thread = threading.Thread(target=post)
    thread.start()
    time.sleep(0.3)
    collecting.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    kafka.go_on()
    time.sleep(1.5)  # the port is closed by now
    with pytest.raises(httpx.ConnectError):
        httpx.get(collecting.url)
    go_on.set()
    thread.join(20)
    assert [answer.status_code for answer in answers] == [202]
    assert collecting.process.wait(15) == 0
    assert len(kafka.messages("begun")) >= 1
