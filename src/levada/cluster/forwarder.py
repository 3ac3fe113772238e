"""One process a cluster that carries TCP connections from 127.0.0.1 into the cluster.

Run as a script with the path of a JSON table: {"<port>": {"address": [host, port]} or {"service": [namespace, name,
port]}}. It listens on the machine's own 127.0.0.1 and opens the other half in the cluster's control namespace: a
socket belongs to the namespace of the thread that made it, so one thread that has entered it makes them all.
A Service is looked up anew every few seconds, so a pod or a whole Service may come and go behind a port.
SIGHUP makes it read the table again; it writes the ports it really listens on beside the table.
Only the standard library is imported, so that it costs few megabytes.
"""

import asyncio
import ctypes
import functools
import http.client
import json
import os
import signal
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 1 << 16
CLONE_NEWNET = 0x40000000
CONNECT_SECONDS = 5.0
REMEMBER_SECONDS = 3.0

Address = tuple[str, int]


def enter_network(namespace: str) -> None:
    """Move the calling thread into a network namespace (os.setns comes with Python 3.12)."""
    descriptor = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(descriptor)


class Forwarder:
    """Listeners by port, and what each leads to."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.settings: dict[str, Any] = {}
        self.routes: dict[int, dict[str, Any]] = {}
        self.servers: dict[int, asyncio.Server] = {}
        self.known: dict[tuple[str, str, int], tuple[float, Address]] = {}

    async def run(self) -> None:
        """Serve until SIGTERM."""
        loop = asyncio.get_running_loop()
        self.settings = json.loads(self.table.read_text())
        self.inside = ThreadPoolExecutor(1, initializer=enter_network, initargs=(self.settings["namespace"],))
        again, stop = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, again.set)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        again.set()
        ending = asyncio.create_task(stop.wait())
        while not stop.is_set():
            changed = asyncio.create_task(again.wait())
            await asyncio.wait([changed, ending], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            again.clear()
            await self.reload()
        os._exit(0)  # open connections end here, as everything else of a cluster that goes down

    async def reload(self) -> None:
        """Open and close listeners so that they are the table's."""
        self.settings = json.loads(self.table.read_text())
        self.routes = {int(port): route for port, route in self.settings["routes"].items()}
        for port in self.servers.keys() - self.routes.keys():
            self.servers.pop(port).close()
        for port in self.routes.keys() - self.servers.keys():
            try:
                serve = functools.partial(self.serve, port)
                self.servers[port] = await asyncio.start_server(serve, "127.0.0.1", port, backlog=512)
            except OSError as error:
                print(f"port {port}: {error}", flush=True)
        half = self.table.with_suffix(".new")
        half.write_text(json.dumps(sorted(self.servers)))
        half.rename(self.table.with_name("listening.json"))

    async def serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection; either side may end its half first."""
        try:
            far_reader, far_writer = await self.connect(self.routes[port])
        except (OSError, TimeoutError, LookupError, http.client.HTTPException) as error:
            print(f"port {port}: {self.routes.get(port)}: {error!r}", flush=True)
            writer.transport.abort()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        for end in (writer, far_writer):
            end.close()

    async def connect(self, route: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the inner half of a connection; once more with a fresh address if the remembered one is dead."""
        loop = asyncio.get_running_loop()
        for attempt in (1, 2):
            address = await loop.run_in_executor(self.inside, self.resolve, route)
            inner = await loop.run_in_executor(self.inside, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
            inner.setblocking(False)
            try:
                await asyncio.wait_for(loop.sock_connect(inner, address), CONNECT_SECONDS)
                return await asyncio.open_connection(sock=inner)
            except OSError:
                inner.close()
                self.known.clear()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def resolve(self, route: dict[str, Any]) -> Address:
        """Where a route leads now; asks the API server, so it runs in the inner thread."""
        if "address" in route:
            host, port = route["address"]
            return str(host), int(port)
        namespace, name, port = route["service"]
        then, address = self.known.get((namespace, name, port), (0.0, ("", 0)))
        if time.monotonic() - then > REMEMBER_SECONDS:
            address = (self.cluster_ip(namespace, name), int(port))
            self.known[namespace, name, port] = (time.monotonic(), address)
        return address

    def cluster_ip(self, namespace: str, name: str) -> str:
        """Cluster IP of a Service."""
        api = self.settings["api"]
        context = ssl.create_default_context(cafile=api["authority"])
        context.load_cert_chain(api["certificate"], api["key"])
        host, port = api["address"]
        connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=context)
        try:
            connection.request("GET", f"/api/v1/namespaces/{namespace}/services/{name}")
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise LookupError(f"Service {namespace}/{name}: the API server answers {answer.status}")
            return str(json.load(answer)["spec"]["clusterIP"])
        finally:
            connection.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until the end, and hand on the end; a broken side breaks the other."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        with suppress(OSError, RuntimeError):
            writer.write_eof()
    except OSError:
        writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(Forwarder(Path(sys.argv[1])).run())
