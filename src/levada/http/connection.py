"""HTTP/1.1 with bounds: uvicorn's connection, given deadlines that do not move, and limits on what one may send.

uvicorn starts its timers again at every byte, so a client that sends one byte a second holds a connection for ever.
Here the time for the head and for the body of a request counts from its first byte. What breaks HTTP, or a bound, is
answered with a problem, and what else comes is read and forgotten for a moment before the connection ends: one that is
closed on unread bytes is reset, and the client would never see the answer.

A POST that came whole in one piece, with nothing waiting before it, may be answered directly, as an :class:`Exchange`:
ASGI's scope, task and messages cost twice what all other steps of HTTP do. Everything else goes by ASGI.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from levada.http.problem import MEDIA_TYPE, Problem

SWEEP_SECONDS: Final = 0.25
"""How often :meth:`Connection.check` is to be called."""
_LINGER_SECONDS: Final = 0.5
_LINGER_BODY_SECONDS: Final = 2.0
_FLUSH_SECONDS: Final = 5.0
_LEAVE_SECONDS: Final = 0.3
_MAX_HEADERS: Final = 100
_HEAD: Final = b"HTTP/1.1 "
_CLOSE: Final = b"connection: close\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 "
_MAX_PIPELINED: Final = 64


@dataclass(frozen=True)
class Limits:
    """What one connection may take, and how many there may be."""

    head_seconds: float
    """From the first byte of a request, or the start of the connection, to the end of the headers."""
    body_seconds: float
    """From there to the end of the body; and how long answers may wait for a client that does not take them."""
    head_bytes: int
    connections: int


class _Transport:
    """The transport as the answer to a request sees it.

    The head of an answer is held back until its body comes: one system call, not two. It says so where the connection
    ends behind it, because the request's body is not wanted any more. How to close is the connection's to know.
    """

    __slots__ = ("_close", "_head", "_unread", "_write", "is_closing")

    def __init__(self, transport: Any, close: Callable[[], None], unread: Callable[[], bool]) -> None:
        self._write = transport.write
        self.is_closing = transport.is_closing
        self._close = close
        self._unread = unread
        self._head = b""

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(_HEAD) and not data.startswith(_CONTINUE):
            self._head = data[:-2] + _CLOSE + b"\r\n" if self._unread() else data
            return
        data, self._head = self._head + data, b""
        self._write(data)

    def flush(self) -> None:
        if self._head:  # of an answer without a body
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._close()


class Exchange:
    """A whole request on its connection, answered once by :meth:`respond`, now or later in the event loop.

    To the connection it is what uvicorn calls a cycle.
    """

    __slots__ = ("_connection", "body", "disconnected", "headers", "keep_alive", "response_complete", "target")

    response_started: ClassVar = False
    message_event: ClassVar = asyncio.Event()
    """What uvicorn sets when a client leaves; nobody waits for it."""

    def __init__(self, connection: Connection, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._connection = connection
        self.target = target
        """As it stands in the request line."""
        self.headers = headers
        """Names in lower case."""
        self.body = body
        self.keep_alive = True
        self.response_complete = self.disconnected = False

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Answer; ``headers`` are whole lines, each with its end, without the body's length."""
        self.response_complete = True
        self._connection.answer(self, status, headers, body)


class Connection(HttpToolsProtocol):
    """One connection; :func:`bounded` makes the class with its limits."""

    limits: Limits
    on_refusal: Callable[[int], None]
    """Told the status of each refusal that the application does not see."""
    _lines_of: ClassVar[tuple[Any, bytes]] = None, b""
    """The server's own headers, which it makes anew every second, and their lines."""
    direct: Callable[[Exchange], bool]
    """Whether it takes an exchange; one that it does not take it must leave alone. Does not raise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = httptools.HttpRequestParser(self)  # uvicorn's own is lenient about what follows a last request
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        self._deadline = self._taken_by = math.inf
        self._idle_until = math.inf
        self._head_bytes = self._fields_bytes = self._headers = 0
        self._too_large = self._over = self._lingers = self._leaves = False
        self._piece: bytes | None = None  # the body of a request that may yet be answered directly

    def connection_made(self, transport: Any) -> None:
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)
        self._deadline = time.monotonic() + self.limits.head_seconds
        self._answering = _Transport(transport, self._close, lambda: self._reading == "body")
        if len(self.connections) > 2 * self.limits.connections:
            transport.abort()
        elif len(self.connections) > self.limits.connections:
            self._refuse(Problem(503, "too many connections at once", retry_after=1))

    def data_received(self, data: bytes) -> None:
        """Read on, within the bounds."""
        if self._over:
            return
        self._idle_until = math.inf
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self.limits.head_seconds
        if self._reading != "body":
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing but HTTP/1.1 is spoken here: the request is answered as it stands, and is the last.
            self._over = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(self._head_too_large() if self._too_large else Problem(400, "this is not HTTP/1.1"))
        else:
            if self._reading == "head" and self._head_bytes > self.limits.head_bytes:
                self._refuse(self._head_too_large())
            elif self._piece is not None:  # not whole yet
                self._by_asgi()

    def _head_too_large(self) -> Problem:
        return Problem(431, f"a request may have {_MAX_HEADERS} headers and {self.limits.head_bytes} bytes of them")

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that only stops sending still gets the answers to what it sent whole."""
        cycle = self.cycle
        if self._lingers or cycle is None or cycle.response_complete or self._reading == "body":
            return False
        self._over = True
        cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests before the first is answered")
        self.url, self.headers, self.expect_100_continue = b"", [], False
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self.limits.head_seconds
        self._reading = "head"
        self._fields_bytes = self._headers = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._fields_bytes += len(url)
        self._bound()
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody asked for."""
        self._headers += 1
        self._fields_bytes += len(name) + len(value)
        if self._headers > _MAX_HEADERS or self._fields_bytes > self.limits.head_bytes:
            self._bound()
        if self._reading == "head":
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def _bound(self) -> None:
        self._too_large = self._fields_bytes > self.limits.head_bytes or self._headers > _MAX_HEADERS
        if self._too_large:
            raise ValueError("the head of the request is too large")

    def on_headers_complete(self) -> None:
        """The head of a request is whole."""
        self._reading = "body"
        self._deadline = time.monotonic() + self.limits.body_seconds
        parser, cycle = self.parser, self.cycle
        if (
            (cycle is None or cycle.response_complete)
            and parser.get_method() == b"POST"
            and parser.should_keep_alive()
            and parser.get_http_version() == "1.1"
            and not self.expect_100_continue
            and not parser.should_upgrade()
        ):
            self._piece = b""
        else:
            self._by_asgi()

    def _by_asgi(self) -> None:
        """Let the application take over, with what has come of the body."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()
        self.cycle.transport = self._answering  # type: ignore[assignment]
        piece, self._piece = self._piece, None
        if piece:
            super().on_body(piece)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._piece is None:
            super().on_body(body)
        else:
            self._piece += body

    def on_message_complete(self) -> None:
        """The request is whole; how long its answer takes is for the application to bound."""
        if self._piece is None:
            super().on_message_complete()
            self._whole()
            return
        before = self.cycle
        self.cycle = exchange = Exchange(self, self.url, self.headers, self._piece)  # type: ignore[assignment]
        self._whole()
        if self.direct(exchange):
            self._piece = None
        else:
            self.cycle = before
            self._by_asgi()
            super().on_message_complete()

    def _whole(self) -> None:
        self._reading = "nothing"
        self._deadline = math.inf
        self._head_bytes = 0

    def answer(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        """Write the answer to an exchange, unless the client has gone."""
        if exchange.disconnected or self.transport.is_closing():
            return
        default = self.server_state.default_headers
        if default is not self._lines_of[0]:
            Connection._lines_of = default, b"".join([b"%b: %b\r\n" % header for header in default])
        dated = self._lines_of[1]
        close = b"" if exchange.keep_alive else _CLOSE
        length = b"content-length: %d\r\n\r\n" % len(body)
        self.transport.write(b"".join((STATUS_LINE[status], dated, headers, close, length, body)))
        if not exchange.keep_alive:
            self._close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, unless there must be none."""
        self._answering.flush()
        self.server_state.total_requests += 1
        if self._over:
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._linger()
        elif self._reading == "body" and self.cycle.response_complete:  # nobody wants the rest of it
            self._linger()
        elif not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._idle_until = time.monotonic() + self.timeout_keep_alive
            if self._reading != "nothing":  # it had to wait for this answer
                seconds = self.limits.head_seconds if self._reading == "head" else self.limits.body_seconds
                self._deadline = time.monotonic() + seconds

    def shutdown(self) -> None:
        """Finish what has begun: the server stops. A request may be on its way here, so an idle client has a moment."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._reading == "nothing":
            self._leaves = True
            self._deadline = time.monotonic() + _LEAVE_SECONDS
        elif not idle:
            super().shutdown()
        self._deadline = min(self._deadline, time.monotonic() + self.limits.head_seconds)

    def check(self, now: float) -> None:
        """Act on a deadline that has passed at ``now``, a time.monotonic()."""
        self._taken_by = min(self._taken_by, now + self.limits.body_seconds) if self.flow.write_paused else math.inf
        if now >= self._taken_by:  # the client does not take its answers
            self.transport.abort()
        elif now >= self._idle_until and self._reading == "nothing":
            self.transport.close()
        elif now < self._deadline:
            if self.transport.is_closing() and not self._lingers:
                self._lingers, self._deadline = True, now + _FLUSH_SECONDS
        elif self._lingers:
            self.transport.abort()
        elif self._leaves and self._reading == "nothing":
            self.transport.close()
        else:
            allowed = self.limits.body_seconds if self._reading == "body" else self.limits.head_seconds
            self._refuse(Problem(408, f"the request did not come whole within {allowed:g} seconds"))

    def _refuse(self, problem: Problem) -> None:
        """Take nothing more, and say why, unless earlier requests are still to be answered: an answer has no name."""
        self._over = True
        self._deadline = math.inf
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._reading != "body":
                cycle.keep_alive = False
                return
            if self.pipeline:
                self.pipeline.popleft()
                return
            if cycle.response_started:
                self._linger()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.on_refusal(problem.status)
        body = problem.body()
        headers = {"Content-Type": MEDIA_TYPE.decode(), "Content-Length": str(len(body)), **problem.headers}
        lines = [f"{name}: {value}\r\n" for name, value in {**headers, "Connection": "close"}.items()]
        self.transport.write(STATUS_LINE[problem.status] + "".join(lines).encode() + b"\r\n" + body)
        self._linger()

    def _close(self) -> None:
        if self._reading == "nothing":
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        if self._lingers or self.transport.is_closing():
            return
        self._over = self._lingers = True
        seconds = _LINGER_BODY_SECONDS if self._reading == "body" else _LINGER_SECONDS
        self._deadline = time.monotonic() + seconds
        self.transport.write_eof()
        self.flow.resume_reading()


def bounded(limits: Limits, on_refusal: Callable[[int], None], direct: Callable[[Exchange], bool]) -> type[Connection]:
    """The protocol class for uvicorn, with these limits."""
    members = {"limits": limits, "on_refusal": staticmethod(on_refusal), "direct": staticmethod(direct)}
    return type("BoundedConnection", (Connection,), members)
