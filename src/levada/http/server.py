"""Listening: a server that drains before it stops, so that a rolling update fails no request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from typing import Any, Final, Protocol

import uvicorn
import uvloop

from levada.config import HttpSettings
from levada.http.connection import SWEEP_SECONDS, Connection, Exchange, Limits, bounded

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_DRAIN_SECONDS: Final = 1.0
_LAST_CALL_SECONDS: Final = 0.1
# A client asks for a connection again a second after it got no answer (RFC 6298, 2.1); uvicorn takes 0.1 s to close.
_REFUSE_SECONDS: Final = 1.3
_GRACE_SECONDS: Final = 15
_KEEP_ALIVE_SECONDS: Final = 15
_GARBAGE_OBJECTS: Final = 10_000
_MIN_TTL: Final = 21  # IP_MINTTL of ip(7), which Python does not name


class Application(Protocol):
    """What is served: ASGI, with a short way for the requests that matter most."""

    draining: bool
    """Set while clients are to be told to close their connections."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request by ASGI."""

    def direct(self, exchange: Exchange) -> bool:
        """Whether it has taken the exchange; what it leaves goes by ASGI. Does not raise."""

    def refused(self, status: int) -> None:
        """Note the status of a request that was refused before the application saw it."""


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _sweep(server: uvicorn.Server) -> None:
    """Have each connection look at its deadline, now and then: a timer a request would cost more."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now = time.monotonic()
        for connection in list(server.server_state.connections):
            assert isinstance(connection, Connection)  # noqa: S101
            connection.check(now)


async def listen(app: Application, port: int, limits: Limits, stop: threading.Event) -> None:
    """Answer requests until ``stop``; then tell clients to go, stop listening, and finish what is under way."""
    config = uvicorn.Config(
        app,
        http=bounded(limits, app.refused, app.direct),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config)
    # Ours, and as long as uvicorn's, because it has to hold clients off before it is closed.
    listener = socket.create_server(("0.0.0.0", port), backlog=config.backlog)  # noqa: S104
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    sweeping = asyncio.create_task(_sweep(server))
    while not (stop.is_set() or serving.done()):
        await asyncio.sleep(0.1)
    app.draining = True
    if not serving.done():
        await asyncio.sleep(_DRAIN_SECONDS)
        # The kernel begins no more connections; those that it has are accepted, not reset with the port. Who was held
        # off meanwhile asks again, and is refused by a host that is still there: without it, it would ask for long.
        _hold_off(listener)
        await asyncio.sleep(_LAST_CALL_SECONDS)
        for connection in server.server_state.connections:
            _let_in(connection.transport.get_extra_info("socket"))
        server.should_exit = True
        await asyncio.sleep(_REFUSE_SECONDS)
    await serving
    sweeping.cancel()


def _hold_off(listener: socket.socket) -> None:
    """Leave whoever asks for a connection without an answer; a handshake under way goes on.

    By asking for packets with 255 hops left, where they begin with 64 or 128: no right is needed for it, as it is for a
    filter on some kernels. To shorten the backlog instead makes the kernel answer with SYN cookies, or keep clients
    that believe to be connected, and reset them with the port. Where packets cannot be told so, a few are.
    """
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.IPPROTO_IP, _MIN_TTL, 255)


def _let_in(connection: socket.socket) -> None:
    """Take all packets of a connection, which has what its listener had when the handshake ended."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_IP, _MIN_TTL, 0)


def limits_of(settings: HttpSettings) -> Limits:
    """The limits that a server's settings give."""
    return Limits(settings.header_timeout, settings.body_timeout, settings.max_header_bytes, settings.max_connections)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run what listens to its end, on uvloop."""
    # What is loaded by now stays, and some hundred requests under way are no garbage: to look through them after every
    # 700 new objects costs a tenth of each request.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
