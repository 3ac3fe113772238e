"""Hostile HTTP against the real process: every answer is meant, nothing hangs, memory stays, others do not feel it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.unit.http.hostile import BODY_SECONDS, CONNECTIONS, MEMORY_MIB, Target, Victim, resident

from .collecting import API_KEY, Collecting
from .conftest import FIELDS
from .kafka import MockKafka

GOOD = b'{"n": 1, "user": "u"}'
TARGET = Target("/v1/plain/events", GOOD, "202", API_KEY)
head, event = TARGET.head, TARGET.post
CASES = {
    **TARGET.bodies(),
    # What is no event
    "truncated JSON": (event(b'{"n": 1'), "400"),
    "NaN": (event(b'{"n": NaN, "user": "u"}'), "400"),
    "Infinity": (event(b'{"n": -Infinity, "user": "u"}'), "400"),
    "1e999": (event(b'{"n": 1e999, "user": "u"}'), "400 422"),
    "400 digits": (event(b'{"n": %s, "user": "u"}' % (b"9" * 400)), "400 422"),
    "a fraction for a long": (event(b'{"n": 1.0, "user": "u"}'), "422"),
    "a text for a long": (event(b'{"n": "1", "user": "u"}'), "422"),
    "true for a long": (event(b'{"n": true, "user": "u"}'), "422"),
    "null": (event(b"null"), "400"),
    "a text": (event(b'"n"'), "400"),
    "deep object": (event(b'{"n":' * 100_000), "400"),
    "deep and closed": (event(b'{"n":' * 100_000 + b"1" + b"}" * 100_000), "400"),
    "deep inside an array": (event(b'[{"n":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"), "207 400"),
    "NUL in a name": (event(b'{"n\\u0000": 1, "user": "u"}'), "422"),
    "one name twice": (event(b'{"n": "x", "n": 1, "user": "u"}'), "202"),
    "a name of 100,000 letters": (event(b'{"%s": 1}' % (b"x" * 100_000)), "422"),
    "10,000 unknown names": (event(json.dumps({f"x{n}": n for n in range(10_000)}).encode()), "422"),
    "1 MiB of a text": (event(b'{"n": 1, "user": "%s"}' % (b"x" * 1_048_600)), "413"),
    # Batches
    "a million brackets": (event(b"[" + b"[]," * 330_000 + b"[]]"), "400"),
    "a million objects": (event(b"[" + b"{}," * 330_000 + b"{}]"), "413"),
    "a million lines": (event(b"\n" * 1_000_000, Content_Type="application/x-ndjson"), "413"),
    "lines of nothing": (event(b"{}\n" * 9_999, Content_Type="application/x-ndjson"), "207"),
    "bad lines": (event(b"\xff\n" * 9_999, Content_Type="application/x-ndjson"), "207"),
    "array of backslashes": (event(b'[{"' + b"\\" * 1_000_000), "400"),
    # Headers and targets
    "two event ids": (head("Idempotency-Key: a", "Idempotency-Key: b") + GOOD, "400"),
    "an event id with a tab": (head("Idempotency-Key: a\tb") + GOOD, "400"),
    "up and away": (head(first="POST /v1/../plain/events HTTP/1.1") + GOOD, "404"),
    "an encoded slash": (head(first="POST /v1/plain%2Fevents HTTP/1.1") + GOOD, "202 404"),
    "an encoded NUL": (head(first="POST /v1/pl%00ain/events HTTP/1.1") + GOOD, "404"),
    "bad percent": (head(first="POST /v1/%zz/events HTTP/1.1") + GOOD, "400 404"),
    "a pipeline of 10,000 letters": (head(first=f"POST /v1/{'x' * 10_000}/events HTTP/1.1") + GOOD, "404"),
    "bytes in the target": (b"POST /v1/\xff/events HTTP/1.1\r\nHost: h\r\n\r\n", "400 404"),
    **TARGET.framing(),
}  # fmt: skip


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    kafka = MockKafka()
    kafka.make_topic("plain")
    collecting = Collecting(
        tmp_path_factory.mktemp("hostile"), kafka.bootstrap, {"plain": {"fields": FIELDS}},
        LEVADA_COLLECTOR__BODY_TIMEOUT=str(BODY_SECONDS), LEVADA_COLLECTOR__MAX_CONNECTIONS=str(CONNECTIONS),
    )  # fmt: skip
    victim = Victim(TARGET, collecting.port, collecting.process.pid, collecting.log)
    with httpx.Client() as client:
        for _ in range(200):
            assert victim.healthy(client)
    yield victim
    collecting.stop()
    kafka.kill()


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


def test_every_case_is_answered_as_meant(victim: Victim) -> None:
    victim.check_answers(CASES)


def test_every_refusal_is_a_problem(victim: Victim) -> None:
    victim.check_refusals(CASES)


@pytest.mark.parametrize("chunked", [False, True])
def test_100_mb(victim: Victim, chunked: bool) -> None:
    victim.check_100_mb(chunked=chunked)


def test_20_mb_that_are_sent_to_the_end(victim: Victim) -> None:
    before = resident(victim.pid)
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    with httpx.Client(base_url=victim.url) as client:
        assert client.post(TARGET.path, content=b"x" * 20_000_000, headers=headers).status_code == 413
    assert resident(victim.pid, "VmHWM") - before <= MEMORY_MIB


def test_slow_ones_are_closed_while_others_are_served(victim: Victim) -> None:
    victim.check_slow()


def test_too_many_connections(victim: Victim) -> None:
    victim.check_connections()


def test_a_client_that_takes_no_answer_is_let_go(victim: Victim) -> None:
    descriptors = Path(f"/proc/{victim.pid}/fd")
    time.sleep(1)
    before = len(list(descriptors.iterdir()))
    with socket.create_connection(("127.0.0.1", victim.port)) as connection:
        lines = event(b"{}\n" * 9_999, Content_Type="application/x-ndjson")
        connection.sendall(lines * 8)  # some 10 MB of receipts
        time.sleep(1)
        assert len(list(descriptors.iterdir())) == before + 1
        deadline = time.monotonic() + BODY_SECONDS + 10
        while len(list(descriptors.iterdir())) > before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
