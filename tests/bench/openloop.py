"""A client that sends at a fixed rate, whatever the answers do: latency counts from when a request was due.

``python openloop.py PORT RATE SECONDS CONNECTIONS``, the request on standard input: prints p50 and p99 in seconds.
There must be more connections than requests in flight at that rate, or what is measured is the wait for one.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time

import uvloop


class Client(asyncio.Protocol):
    """One connection: requests in turn, one at a time."""

    def __init__(self, request: bytes, taken: list[float]) -> None:
        self._request, self._taken = request, taken
        self._due: list[float] = []
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def due(self, at: float) -> None:
        self._due.append(at)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = bool(self._due)
        if self._busy:
            self._transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 2"), data[:200]
        self._taken.append(time.perf_counter() - self._due.pop(0))
        self._next()


async def main(port: int, request: bytes, rate: float, seconds: float, connections: int) -> list[float]:
    taken: list[float] = []
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(request, taken), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    begin, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - begin) < seconds:
        while sent < now * rate:
            clients[sent % connections].due(begin + sent / rate)
            sent += 1
        await asyncio.sleep(0.0005)
    await asyncio.sleep(0.5)
    assert len(taken) > 0.98 * sent, (len(taken), sent)
    return taken


if __name__ == "__main__":
    gc.disable()  # its own pauses are nobody's answer
    port, rate, seconds, connections = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        taken = sorted(runner.run(main(port, sys.stdin.buffer.read(), rate, seconds, connections)))
    print(*(taken[int(len(taken) * part)] for part in (0.5, 0.99)))
