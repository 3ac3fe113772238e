"""Hostile HTTP against the real process: every answer is meant, nothing hangs, memory stays, others do not feel it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.unit.http.hostile import Target, allowed, answers, drip, resident, statuses, talk

from .collecting import API_KEY, Collecting
from .conftest import FIELDS
from .kafka import MockKafka

GOOD = b'{"n": 1, "user": "u"}'
_HEAD_SECONDS, _BODY_SECONDS = 5, 3
_MEMORY_MIB = 16


@pytest.fixture(scope="module")
def collecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collecting]:
    kafka = MockKafka()
    kafka.make_topic("plain")
    collecting = Collecting(
        tmp_path_factory.mktemp("hostile"), kafka.bootstrap, {"plain": {"fields": FIELDS}},
        LEVADA_COLLECTOR__BODY_TIMEOUT=str(_BODY_SECONDS), LEVADA_COLLECTOR__MAX_CONNECTIONS="200",
    )  # fmt: skip
    with httpx.Client(base_url=collecting.url) as client:
        for _ in range(200):
            assert healthy(client)
    yield collecting
    collecting.stop()
    kafka.kill()


def port(collecting: Collecting) -> int:
    return int(collecting.url.rpartition(":")[2])


def healthy(client: httpx.Client) -> bool:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    return client.post("/v1/plain/events", json={"n": 1, "user": "u"}, headers=headers).status_code == 202


TARGET = Target("/v1/plain/events", GOOD, "202", API_KEY)
head, event, chunked, ONE = TARGET.head, TARGET.post, TARGET.chunked, TARGET.one
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


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


def test_every_case_is_answered_as_meant(collecting: Collecting) -> None:
    wrong = {}
    with httpx.Client(base_url=collecting.url) as client:
        before = resident(collecting.process.pid)
        for name, (request, expected) in CASES.items():
            begin = time.monotonic()
            found, raw = talk(port(collecting), request)
            if tuple(found) not in allowed(expected) or time.monotonic() - begin > 3:
                wrong[name] = (found, expected, time.monotonic() - begin, raw[:300])
            assert healthy(client), name
        grown = resident(collecting.process.pid, "VmHWM") - before
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())
    assert grown <= _MEMORY_MIB
    assert "Traceback" not in collecting.log.read_text()
    assert "a request failed" not in collecting.log.read_text()


def test_every_refusal_is_a_problem(collecting: Collecting) -> None:
    for name, (request, _) in CASES.items():
        if name == "HEAD":
            continue
        _, raw = talk(port(collecting), request)
        for status, top, body in answers(raw):
            if 400 <= status < 500:
                assert b"application/problem+json" in top, name
                assert json.loads(body)["status"] == status, name


@pytest.mark.parametrize("body", ["whole", "chunks"])
def test_100_mb(collecting: Collecting, body: str) -> None:
    before = resident(collecting.process.pid)
    size = 100_000_000
    block = b"x" * 1_000_000
    request = event(block * 100) if body == "whole" else chunked(*[block] * 100)
    assert len(request) > size
    begin = time.monotonic()
    found, _ = talk(port(collecting), request, seconds=20)
    assert found in (["413"], [])  # the client is told, and let go before it has sent all of it
    assert time.monotonic() - begin < 5
    del request
    with httpx.Client(base_url=collecting.url) as client:
        answer = client.post(
            "/v1/plain/events", content=block * 20,
            headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"},
        )  # fmt: skip
        assert answer.status_code == 413
        assert healthy(client)
    assert resident(collecting.process.pid, "VmHWM") - before <= _MEMORY_MIB


SLOW = {
    "headers": (b"POST /v1/plain/events HTTP/1.1\r\nX-A: ", b"x", _HEAD_SECONDS),
    "headers, many": (b"POST /v1/plain/events HTTP/1.1\r\n", b"X-A: b\r\n", _HEAD_SECONDS),
    "line feeds": (b"\r\n", b"\r\n", _HEAD_SECONDS),
    "nothing at all": (b"", b"", _HEAD_SECONDS),
    "body": (head(Content_Length="1000"), b" ", _BODY_SECONDS),
    "chunks": (head("Transfer-Encoding: chunked", Content_Length=None), b"1\r\nx\r\n", _BODY_SECONDS),
    "the second request": (ONE + b"POST /", b"x", _HEAD_SECONDS),
}


def test_slow_ones_are_closed_while_others_are_served(collecting: Collecting) -> None:
    found: dict[str, tuple[list[str], float]] = {}
    threads = [
        threading.Thread(
            target=lambda name=name, case=case: found.update({name: drip(port(collecting), *case[:2], 0.2)})
        )
        for name, case in SLOW.items()
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=collecting.url) as client:
        while any(thread.is_alive() for thread in threads):
            assert healthy(client)
            time.sleep(0.05)
    for name, (_, _, seconds) in SLOW.items():
        told, taken = found[name]
        assert told[-1:] == ["408"], name
        assert seconds - 0.5 < taken < seconds + 1, name
    assert found["the second request"][0] == ["202", "408"]


def test_too_many_connections(collecting: Collecting) -> None:
    address = ("127.0.0.1", port(collecting))
    time.sleep(1)
    opened = [socket.create_connection(address) for _ in range(230)]
    try:
        time.sleep(0.2)
        answer = opened[-1].recv(1000)
        assert statuses(answer) == ["503"]
        assert b"Retry-After: 1" in answer
    finally:
        for connection in opened:
            connection.close()
    deadline = time.monotonic() + 5
    with httpx.Client(base_url=collecting.url) as client:
        while not healthy(client):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_client_that_takes_no_answer_is_let_go(collecting: Collecting) -> None:
    descriptors = Path(f"/proc/{collecting.process.pid}/fd")
    time.sleep(1)
    before = len(list(descriptors.iterdir()))
    with socket.create_connection(("127.0.0.1", port(collecting))) as connection:
        lines = event(b"{}\n" * 9_999, Content_Type="application/x-ndjson")
        connection.sendall(lines * 8)  # some 10 MB of receipts
        time.sleep(1)
        assert len(list(descriptors.iterdir())) == before + 1
        deadline = time.monotonic() + _BODY_SECONDS + 10
        while len(list(descriptors.iterdir())) > before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
