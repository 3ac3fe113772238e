"""An outside client that asks for predictions without pause and tells what came of every request.

``python -m tests.cluster.serving.load HOST PORT CONNECTIONS REQUESTS PAUSE``, the request on standard input: asks until
SIGTERM, each connection PAUSE seconds after an answer; says so once it has asked REQUESTS times, and in the end what
came of all, as JSON. A request whose connection is refused or breaks is sent once more, after a moment and on a new
connection, as any HTTP client may do it; what fails then has failed. It ends by itself after half an hour.

It runs in the network of another pod and asks the Service's own address, so it meets what kube-proxy makes of pods that
come and go. After some answers it opens its connections anew, so that they spread over the pods there are.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, Final

import uvloop

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

_PATIENCE_SECONDS: Final = 30.0
_LONGEST_SECONDS: Final = 1800.0
_REST_SECONDS: Final = 0.1
_AGAIN_SECONDS: Final = 3.0
"""Until a request is sent once more: so long a Service may still lead to a pod that was killed."""
_ANSWERS: Final = 200
"""On one connection."""
_VERSION: Final = b"levada-model-version: "


@dataclass
class Answers:
    """What became of all requests."""

    requests: int = 0
    again: int = 0
    """Requests that were sent a second time."""
    statuses: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    last: dict[str, float] = field(default_factory=dict)
    """Version → when it answered last, in seconds since 1970."""
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0

    def note(self, head: bytes, begin: float) -> None:
        """Count one answer."""
        self.requests += 1
        self.statuses[head[9:12].decode()] += 1
        _, _, rest = head.partition(_VERSION)
        version = rest.partition(b"\r\n")[0].decode()
        self.versions[version] += 1
        self.last[version] = time.time()
        self.longest = max(self.longest, time.monotonic() - begin)


class Client:
    """One connection, which is opened again when it has ended."""

    def __init__(self, host: str, port: int, request: bytes, answers: Answers) -> None:
        self._host, self._port, self._request, self._answers = host, port, request, answers
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._left = 0

    async def ask(self) -> None:
        begin = time.monotonic()
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    self._answers.note(await self._attempt(), begin)
                return
            except (OSError, EOFError, TimeoutError) as error:
                self.close()
                if attempt == 2 or isinstance(error, TimeoutError):
                    self._answers.requests += 1
                    self._answers.failed.append(f"{time.time():.1f} {error!r}")
                    await asyncio.sleep(_REST_SECONDS)
                    return
                self._answers.again += 1
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _attempt(self) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
            self._left = _ANSWERS
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        self._left -= 1
        if not self._left or b"connection: close" in head.lower():
            self.close()
        return head

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def main(host: str, port: int, connections: int, requests: int, pause: float, request: bytes) -> Answers:
    answers, stop = Answers(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.call_later(_LONGEST_SECONDS, stop.set)

    async def client() -> None:
        one = Client(host, port, request, answers)
        while not stop.is_set():
            await one.ask()
            if answers.requests == requests:
                print(flush=True)
            if pause:
                await asyncio.sleep(pause)
        one.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return answers


class Load:
    """A client that asks, in a process of its own."""

    def __init__(self, command: list[str], request: str) -> None:
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(request)
        self._process.stdin.close()

    def stop(self) -> Answers:
        """No more requests once there were as many as wanted; what came of them."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "\n"
        self._process.terminate()
        told = json.loads(self._process.stdout.readline())
        return Answers(**told | {name: Counter(told[name]) for name in ("statuses", "versions")})

    def kill(self) -> None:
        """Stop at once."""
        with self._process:
            self._process.kill()


@contextmanager
def load(
    line: Line, service: str, instance: Mapping[str, float], *, requests: int, connections: int = 8, pause: float = 0
) -> Iterator[Load]:
    """Ask the predictor behind a Service while the block runs."""
    assert line.target.cluster is not None
    host = line.kubectl("get", "service", service, "--output", "jsonpath={.spec.clusterIP}")
    body = json.dumps({"instances": [instance]})
    request = (
        f"POST /predict HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {line.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    neighbour = line.target.cluster.faults.processes(line.target.namespace, "levada-prometheus-0")["prometheus"]
    options = [host, "8080", str(connections), str(requests), str(pause)]
    client = Load(["nsenter", f"--target={neighbour[0]}", "--net", sys.executable, "-m", __name__, *options], request)
    try:
        yield client
    finally:
        client.kill()


if __name__ == "__main__":
    port, connections, requests = map(int, sys.argv[2:5])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        asked = main(sys.argv[1], port, connections, requests, float(sys.argv[5]), sys.stdin.buffer.read())
        print(json.dumps(vars(runner.run(asked))))
