"""Hostile HTTP against the real process: every answer is meant, nothing hangs, memory stays, others do not feel it.

What a case may be answered is written as the statuses in their order; a connection that ends without one is "".
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from .collecting import API_KEY, Collecting
from .conftest import FIELDS
from .kafka import MockKafka

GOOD = b'{"n": 1, "user": "u"}'
KEY = f"Authorization: Bearer {API_KEY}".encode()
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


def healthy(client: httpx.Client) -> bool:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    return client.post("/v1/plain/events", json={"n": 1, "user": "u"}, headers=headers).status_code == 202


def resident(collecting: Collecting, which: str = "VmRSS") -> float:
    """Memory in MiB."""
    status = Path(f"/proc/{collecting.process.pid}/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def head(*lines: str, first: str = "POST /v1/plain/events HTTP/1.1", **replaced: str | None) -> bytes:
    """A request's head; a header is replaced by its name, or left out by None."""
    headers: dict[str, str | None] = {
        "Host": "h",
        "Authorization": f"Bearer {API_KEY}",
        "Content-Type": "application/json",
        "Content-Length": str(len(GOOD)),
    }
    headers |= {name.replace("_", "-"): value for name, value in replaced.items()}
    kept = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([first, *kept, *lines, "", ""]).encode("latin-1")


def event(body: bytes, **replaced: str | None) -> bytes:
    return head(Content_Length=str(len(body)), **replaced) + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", te: str = "chunked", **replaced: str | None) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    return head(f"Transfer-Encoding: {te}", **{"Content_Length": None, **replaced}) + body


ONE = head() + GOOD
CLOSED = ""
CASES: dict[str, tuple[bytes, str]] = {
    # What is no event
    "truncated JSON": (event(b'{"n": 1'), "400"),
    "empty body": (event(b""), "400"),
    "blank body": (event(b"  \n "), "400"),
    "NaN": (event(b'{"n": NaN, "user": "u"}'), "400"),
    "Infinity": (event(b'{"n": -Infinity, "user": "u"}'), "400"),
    "1e999": (event(b'{"n": 1e999, "user": "u"}'), "400 422"),
    "400 digits": (event(b'{"n": %s, "user": "u"}' % (b"9" * 400)), "400 422"),
    "a fraction for a long": (event(b'{"n": 1.0, "user": "u"}'), "422"),
    "a text for a long": (event(b'{"n": "1", "user": "u"}'), "422"),
    "true for a long": (event(b'{"n": true, "user": "u"}'), "422"),
    "null": (event(b"null"), "400"),
    "a text": (event(b'"n"'), "400"),
    "deep array": (event(b"[" * 100_000), "400"),
    "deep object": (event(b'{"n":' * 100_000), "400"),
    "deep and closed": (event(b'{"n":' * 100_000 + b"1" + b"}" * 100_000), "400"),
    "deep inside an array": (event(b'[{"n":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"), "207 400"),
    "bad UTF-8": (event(b'{"n": 1, "user": "\xff\xfe"}'), "400"),
    "overlong UTF-8": (event(b'{"n": 1, "user": "\xc0\xaf"}'), "400"),
    "half a surrogate": (event(b'{"n": 1, "user": "\\ud800"}'), "400"),
    "UTF-16": (event('{"n": 1, "user": "u"}'.encode("utf-16")), "400"),
    "byte order mark": (event(b"\xef\xbb\xbf" + GOOD), "400"),
    "NUL in a name": (event(b'{"n\\u0000": 1, "user": "u"}'), "422"),
    "one name twice": (event(b'{"n": "x", "n": 1, "user": "u"}'), "202"),
    "a name of 100,000 letters": (event(b'{"%s": 1}' % (b"x" * 100_000)), "422"),
    "10,000 unknown names": (event(json.dumps({f"x{n}": n for n in range(10_000)}).encode()), "422"),
    "behind the object": (event(GOOD + GOOD), "400"),
    "comments": (event(b'{"n": 1, /* */ "user": "u"}'), "400"),
    "single quotes": (event(b"{'n': 1, 'user': 'u'}"), "400"),
    "a pickle": (event(b"\x80\x04\x95\x0b\x00\x00\x00"), "400"),
    "1 MiB of a text": (event(b'{"n": 1, "user": "%s"}' % (b"x" * 1_048_600)), "413"),
    # Batches
    "a million brackets": (event(b"[" + b"[]," * 330_000 + b"[]]"), "400"),
    "a million objects": (event(b"[" + b"{}," * 330_000 + b"{}]"), "413"),
    "a million lines": (event(b"\n" * 1_000_000, Content_Type="application/x-ndjson"), "413"),
    "lines of nothing": (event(b"{}\n" * 9_999, Content_Type="application/x-ndjson"), "207"),
    "bad lines": (event(b"\xff\n" * 9_999, Content_Type="application/x-ndjson"), "207"),
    "array of backslashes": (event(b'[{"' + b"\\" * 1_000_000), "400"),
    # Headers
    "no host": (head(Host=None) + GOOD, "400"),
    "two hosts": (head("Host: other") + GOOD, "400"),
    "no content type": (head(Content_Type=None) + GOOD, "415"),
    "a form": (head(Content_Type="application/x-www-form-urlencoded") + GOOD, "415"),
    "two content types": (head("Content-Type: text/plain") + GOOD, "400"),
    "gzip": (head("Content-Encoding: gzip") + GOOD, "415"),
    "no key": (head(Authorization=None) + GOOD, "401"),
    "two keys": (head(f"Authorization: Bearer {API_KEY}") + GOOD, "401"),
    "key in the query": (head(first=f"POST /v1/plain/events?key={API_KEY} HTTP/1.1", Authorization=None) + GOOD, "401"),
    "a key of 8,000 letters": (head(Authorization="Bearer " + "x" * 8_000) + GOOD, "401"),
    "a key that is not ASCII": (head(Authorization="Bearer \xff\xfe") + GOOD, "401"),
    "two event ids": (head("Idempotency-Key: a", "Idempotency-Key: b") + GOOD, "400"),
    "an event id with a tab": (head("Idempotency-Key: a\tb") + GOOD, "400"),
    "a NUL in a header": (head("X-A: a\x00b") + GOOD, "400"),
    "a space before the colon": (head("X-A : b") + GOOD, "400"),
    "a folded header": (head("X-A: a", " b") + GOOD, "202 400"),
    "a header without a name": (head(": b") + GOOD, "400"),
    "one header of 100 KB": (head("X-A: " + "x" * 100_000) + GOOD, "431"),
    "200 headers": (head(*(f"X-{n}: {n}" for n in range(200))) + GOOD, "431"),
    "a target of 100 KB": (head(first=f"POST /{'x' * 100_000} HTTP/1.1") + GOOD, "431"),
    "one header that never ends": (b"POST / HTTP/1.1\r\nX-A: " + b"x" * 2_000_000, "431"),
    # Methods and targets
    "GET": (head(first="GET /v1/plain/events HTTP/1.1") + GOOD, "405"),
    "HEAD": (head(first="HEAD /v1/plain/events HTTP/1.1", Content_Length="0"), "405"),
    "PUT": (head(first="PUT /v1/plain/events HTTP/1.1") + GOOD, "405"),
    "OPTIONS": (head(first="OPTIONS /v1/plain/events HTTP/1.1") + GOOD, "405"),
    "TRACE": (head(first="TRACE /v1/plain/events HTTP/1.1") + GOOD, "405"),
    "CONNECT": (head(first="CONNECT h:80 HTTP/1.1") + GOOD, "400 404 405"),
    "PRI": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
    "a made-up method": (head(first="LEVADA / HTTP/1.1") + GOOD, "400"),
    "a lower-case method": (head(first="post /v1/plain/events HTTP/1.1") + GOOD, "400"),
    "the root": (head(first="POST / HTTP/1.1") + GOOD, "404"),
    "star": (head(first="OPTIONS * HTTP/1.1") + GOOD, "400 404 405"),
    "a whole URL": (head(first="POST http://h/v1/plain/events HTTP/1.1") + GOOD, "202"),
    "up and away": (head(first="POST /v1/../plain/events HTTP/1.1") + GOOD, "404"),
    "an encoded slash": (head(first="POST /v1/plain%2Fevents HTTP/1.1") + GOOD, "202 404"),
    "an encoded NUL": (head(first="POST /v1/pl%00ain/events HTTP/1.1") + GOOD, "404"),
    "bad percent": (head(first="POST /v1/%zz/events HTTP/1.1") + GOOD, "400 404"),
    "a pipeline of 10,000 letters": (head(first=f"POST /v1/{'x' * 10_000}/events HTTP/1.1") + GOOD, "404"),
    "bytes in the target": (b"POST /v1/\xff/events HTTP/1.1\r\nHost: h\r\n\r\n", "400 404"),
    # Versions and protocols
    "HTTP/0.9": (b"GET /\r\n\r\n", "400"),
    "HTTP/1.0": (head(first="POST /v1/plain/events HTTP/1.0", Host=None) + GOOD, "202"),
    "HTTP/2.0": (head(first="POST /v1/plain/events HTTP/2.0") + GOOD, "400"),
    "HTTP/9.9": (head(first="POST /v1/plain/events HTTP/9.9") + GOOD, "400"),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + b"\x00" * 200, "400"),
    "noise": (bytes(range(256)) * 8, "400"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "400"),
    "bare line feeds": ((head() + GOOD).replace(b"\r\n", b"\n"), "202 400"),
    "upgrade to a web socket": (head("Connection: Upgrade", "Upgrade: websocket") + GOOD, "202 400"),
    "upgrade to h2c": (head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c") + GOOD, "202 400"),
    # Bodies and how they are framed
    "chunked": (chunked(GOOD[:5], GOOD[5:]), "202"),
    "a byte a chunk": (chunked(*(bytes([byte]) for byte in GOOD)), "202"),
    "chunk extension": (chunked(end=b"15;a=b\r\n" + GOOD + b"\r\n0\r\n\r\n"), "202"),
    "trailers that authorize": (chunked(GOOD, end=b"0\r\n" + KEY + b"\r\n\r\n", Authorization=None), "401"),
    "trailers without end": (chunked(GOOD, end=b"0\r\n" + b"X-A: b\r\n" * 10_000), "400 431"),
    "a chunk size that is none": (chunked(end=b"xyz\r\n" + GOOD + b"\r\n0\r\n\r\n"), "400"),
    "a negative chunk size": (chunked(end=b"-1\r\n" + GOOD + b"\r\n0\r\n\r\n"), "400"),
    "a chunk size of 64 bits and more": (chunked(end=b"fffffffffffffffff\r\n" + GOOD), "400"),
    "a chunk shorter than it says": (chunked(end=b"5\r\n" + GOOD + b"\r\n0\r\n\r\n"), "400"),
    "length and chunks": (chunked(GOOD, Content_Length="21"), "400"),
    "chunks and a length of 0": (chunked(GOOD, Content_Length="0") + ONE, "400"),
    "xchunked": (chunked(GOOD, te="xchunked"), "400"),
    "chunked, identity": (chunked(GOOD, te="chunked, identity"), "400"),
    "chunked twice": (chunked(GOOD, te="chunked, chunked"), "202 400"),
    "a hidden chunked": (head("Transfer-Encoding:\x0bchunked", Content_Length=None) + b"0\r\n\r\n", "400"),
    "two lengths": (head("Content-Length: 5") + GOOD, "400"),
    "two equal lengths": (head(f"Content-Length: {len(GOOD)}") + GOOD, "400"),
    "a list of lengths": (head(Content_Length="21, 21") + GOOD, "400"),
    "a negative length": (head(Content_Length="-1") + GOOD, "400"),
    "a length with a plus": (head(Content_Length="+21") + GOOD, "400"),
    "a length in hex": (head(Content_Length="0x15") + GOOD, "400"),
    "a length of 30 digits": (head(Content_Length="9" * 30) + GOOD, "400"),
    "a length of an exbibyte": (head(Content_Length=str(2**60)) + GOOD, "413"),
    "expect": (head("Expect: 100-continue") + GOOD, "100,202"),
    "expect, and refused": (head("Expect: 100-continue", Authorization=None), "401"),
    "expect something else": (head("Expect: 200-maybe") + GOOD, "202 417"),
    # One behind the other
    "two": (ONE * 2, "202,202"),
    "good, bad, good": (ONE + event(b"{}") + ONE, "202,422,202"),
    "good, then noise": (ONE + b"\x00\xff" * 50, "202"),
    "good, then a smuggled one": (head("Connection: close") + GOOD + ONE, "202"),
    "more than the length": (head(Content_Length="20") + GOOD, "400"),
    "line feeds first": (b"\r\n" * 20 + ONE, "202"),
    "60 at once": (ONE * 60, ",".join(["202"] * 60)),
    "nothing": (b"", CLOSED),
}  # fmt: skip


def statuses(answer: bytes) -> list[str]:
    return re.findall(r"HTTP/1\.1 (\d{3}) ", answer.decode("latin-1"))


def talk(collecting: Collecting, request: bytes, *, seconds: float = 10) -> tuple[list[str], bytes]:
    """Send, read until the other side is quiet or closes; what came."""
    received = b""
    with socket.create_connection(("127.0.0.1", int(collecting.url.rpartition(":")[2])), timeout=seconds) as connection:
        sender = threading.Thread(target=_send, args=(connection, request))
        sender.start()
        try:
            while chunk := connection.recv(65_536):
                received += chunk
        except ConnectionResetError:
            pass
        sender.join()
    return statuses(received), received


def _send(connection: socket.socket, request: bytes) -> None:
    try:
        connection.sendall(request)
        time.sleep(0.05)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


def test_every_case_is_answered_as_meant(collecting: Collecting) -> None:
    wrong = {}
    with httpx.Client(base_url=collecting.url) as client:
        before = resident(collecting)
        for name, (request, expected) in CASES.items():
            begin = time.monotonic()
            found, raw = talk(collecting, request)
            answers = {tuple(filter(None, option.split(","))) for option in expected.split(" ")}
            if tuple(found) not in answers or time.monotonic() - begin > 3:
                wrong[name] = (found, expected, time.monotonic() - begin, raw[:300])
            assert healthy(client), name
        grown = resident(collecting, "VmHWM") - before
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())
    assert grown <= _MEMORY_MIB
    assert "Traceback" not in collecting.log.read_text()
    assert "a request failed" not in collecting.log.read_text()


def test_every_refusal_is_a_problem(collecting: Collecting) -> None:
    for name, (request, _) in CASES.items():
        if name == "HEAD":
            continue
        _, raw = talk(collecting, request)
        for answer in re.split(rb"(?=HTTP/1\.1 \d{3} )", raw):
            if answer[9:10] == b"4":
                top, _, body = answer.partition(b"\r\n\r\n")
                assert b"application/problem+json" in top, name
                assert json.loads(body)["status"] == int(answer[9:12]), name


@pytest.mark.parametrize("body", ["whole", "chunks"])
def test_100_mb(collecting: Collecting, body: str) -> None:
    before = resident(collecting)
    size = 100_000_000
    block = b"x" * 1_000_000
    request = event(block * 100) if body == "whole" else chunked(*[block] * 100)
    assert len(request) > size
    begin = time.monotonic()
    found, _ = talk(collecting, request, seconds=20)
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
    assert resident(collecting, "VmHWM") - before <= _MEMORY_MIB


def drip(collecting: Collecting, begin: bytes, byte: bytes, pause: float) -> tuple[list[str], float]:
    """Send byte by byte until the connection ends; the answer, and how long that took."""
    received, started = b"", time.monotonic()
    with socket.create_connection(("127.0.0.1", int(collecting.url.rpartition(":")[2]))) as connection:
        connection.sendall(begin)
        connection.settimeout(pause)
        while time.monotonic() - started < 20:
            try:
                connection.sendall(byte)
                chunk = connection.recv(65_536)
                received += chunk
                if not chunk:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return statuses(received), time.monotonic() - started


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
        threading.Thread(target=lambda name=name, case=case: found.update({name: drip(collecting, *case[:2], 0.2)}))
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
        answers, taken = found[name]
        assert answers[-1:] == ["408"], name
        assert seconds - 0.5 < taken < seconds + 1, name
    assert found["the second request"][0] == ["202", "408"]


def test_too_many_connections(collecting: Collecting) -> None:
    address = ("127.0.0.1", int(collecting.url.rpartition(":")[2]))
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
    with socket.create_connection(("127.0.0.1", int(collecting.url.rpartition(":")[2]))) as connection:
        lines = event(b"{}\n" * 9_999, Content_Type="application/x-ndjson")
        connection.sendall(lines * 8)  # some 10 MB of receipts
        time.sleep(1)
        assert len(list(descriptors.iterdir())) == before + 1
        deadline = time.monotonic() + _BODY_SECONDS + 10
        while len(list(descriptors.iterdir())) > before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
