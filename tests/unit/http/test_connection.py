"""Requests that are answered directly and by ASGI on one connection: in order, however they are cut."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from levada.http import connection, server
from levada.http.connection import Exchange, Limits
from levada.http.server import Receive, Scope, Send, listen
from tests.unit.ingest.collecting import free_port

IDLE = 1.0
BODIES = st.lists(st.sampled_from([b"now", b"later", b"asgi", b"slow", b""]), min_size=1, max_size=6)


class App:
    """Tells every body back, with the way it came."""

    def __init__(self) -> None:
        self.draining = False
        self.refusals: list[int] = []

    def refused(self, status: int) -> None:
        self.refusals.append(status)

    def direct(self, exchange: Exchange) -> bool:
        if exchange.body == b"now":
            exchange.respond(200, b"x-way: direct\r\n", exchange.body)
        elif exchange.body == b"later":
            asyncio.get_running_loop().call_later(0.005, exchange.respond, 200, b"x-way: direct\r\n", exchange.body)
        else:
            return False
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", scope["path"] != "/unread"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        if body == b"slow":
            await asyncio.sleep(0.005)
        headers = [(b"x-way", b"asgi"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    port, stop = free_port(), threading.Event()
    patch = pytest.MonkeyPatch()
    patch.setattr(server, "_KEEP_ALIVE_SECONDS", IDLE)
    limits = Limits(head_seconds=2, body_seconds=2, head_bytes=4096, connections=100)
    thread = threading.Thread(target=lambda: asyncio.run(listen(App(), port, limits, stop)))
    thread.start()
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    yield port
    stop.set()
    thread.join()
    patch.undo()


def request(body: bytes, *headers: bytes, version: bytes = b"1.1", target: bytes = b"/") -> bytes:
    lines = (b"POST " + target + b" HTTP/" + version, b"Host: h", b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def bodies(received: bytes) -> list[bytes]:
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        found.append(received[:size])
        received = received[size:]
    return found


def rest(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(65536):
        received += data
    return received


@effort(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=BODIES, cuts=st.lists(st.integers(0, 600), max_size=5))
def test_answers_come_in_order_however_requests_are_cut(port: int, sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(request, sent))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
        for begin, end in itertools.pairwise(places):
            client.sendall(stream[begin:end])
            time.sleep(0.001)
        client.shutdown(socket.SHUT_WR)
        assert bodies(rest(client)) == sent


def way(port: int, *pieces: bytes) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.05)
        client.shutdown(socket.SHUT_WR)
        return re.search(rb"x-way: (\w+)", rest(client))[1].decode()  # type: ignore[index]


def test_only_what_is_whole_and_plain_is_answered_directly(port: int) -> None:
    assert way(port, request(b"now")) == "direct"
    assert way(port, request(b"other")) == "asgi"
    assert way(port, request(b"now")[:-1], b"w") == "asgi"
    assert way(port, request(b"now", b"Connection: close")) == "asgi"
    assert way(port, request(b"now", b"Expect: 100-continue")) == "asgi"
    assert way(port, request(b"now", version=b"1.0")) == "asgi"
    assert way(port, request(b"now", b"Connection: upgrade", b"Upgrade: h2c")) == "asgi"


def test_an_answer_before_the_body_says_that_it_is_the_last(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request(b"other", target=b"/unread")[:-5])
        received = rest(client)
    assert received.startswith(b"HTTP/1.1 200")
    assert b"\r\nconnection: close\r\n" in received
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request(b"other", target=b"/unread"))
        client.shutdown(socket.SHUT_WR)
        assert b"connection: close" not in rest(client)


@pytest.mark.parametrize("body", [b"now", b"asgi"])
def test_an_idle_connection_ends(port: int, body: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request(body))
        begin = time.monotonic()
        assert bodies(rest(client)) == [body]
        assert time.monotonic() - begin >= IDLE - connection.SWEEP_SECONDS


def test_what_breaks_http_after_a_direct_answer_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request(b"now") + b"\x00\x00\r\n\r\n")
        received = rest(client)
    assert received.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in received


def test_a_client_that_leaves_before_its_answer_harms_nobody(port: int) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(request(b"later"))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    assert way(port, request(b"now")) == "direct"
