"""One process a cluster that carries TCP connections from 127.0.0.1 into the cluster.

Run as a script with the path of a JSON table: {"<port>": {"address": [host, port]} or {"service": [namespace, name,
port]}}. It listens on the machine's own 127.0.0.1 and opens the other half in the cluster's control namespace: a
socket belongs to the namespace of the thread that made it, so one thread that has entered it makes them all.
A Service is looked up anew every few seconds, so a pod or a whole Service may come and go behind a port. Connections
go to its pods, not to its cluster IP, which only nodes know: any one node may be lost without a port going dead.
SIGHUP makes it read the table again; it writes the ports it really listens on beside the table.
Only the standard library is imported, so that it costs few megabytes.
"""

import asyncio
import ctypes
import functools
import http.client
import json
import os
import random
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
API_SECONDS = 5.0
CONNECT_SECONDS = 2.0  # a pod that is there answers in milliseconds, one on a lost node never
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
        self.known: dict[tuple[str, str, int], tuple[float, list[Address]]] = {}

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
        """Open the inner half of a connection, to some pod that takes it; look the pods up anew if none does."""
        loop = asyncio.get_running_loop()
        error: Exception = LookupError("no pod is ready")
        for _ in range(2):
            addresses = await loop.run_in_executor(self.inside, self.resolve, route)
            for address in random.sample(addresses, len(addresses)):
                inner = await loop.run_in_executor(self.inside, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
                inner.setblocking(False)
                try:
                    await asyncio.wait_for(loop.sock_connect(inner, address), CONNECT_SECONDS)
                    return await asyncio.open_connection(sock=inner)
                except OSError as failed:
                    inner.close()
                    error = failed
            self.known.clear()
        raise error

    def resolve(self, route: dict[str, Any]) -> list[Address]:
        """Where a route leads now; asks the API server, so it runs in the inner thread."""
        if "address" in route:
            host, port = route["address"]
            return [(str(host), int(port))]
        namespace, name, port = route["service"]
        then, addresses = self.known.get((namespace, name, port), (0.0, []))
        if time.monotonic() - then > REMEMBER_SECONDS:
            service = self.get(f"/api/v1/namespaces/{namespace}/services/{name}")
            label = f"labelSelector=kubernetes.io%2Fservice-name%3D{name}"
            slices = self.get(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{label}")
            addresses = endpoints(service, slices["items"], port)
            self.known[namespace, name, port] = (time.monotonic(), addresses)
        return addresses

    def get(self, path: str) -> dict[str, Any]:
        """An object of the API server."""
        api = self.settings["api"]
        context = ssl.create_default_context(cafile=api["authority"])
        context.load_cert_chain(api["certificate"], api["key"])
        host, port = api["address"]
        connection = http.client.HTTPSConnection(host, port, timeout=API_SECONDS, context=context)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise LookupError(f"{path}: the API server answers {answer.status}")
            found: dict[str, Any] = json.load(answer)
            return found
        finally:
            connection.close()


def endpoints(service: dict[str, Any], slices: list[dict[str, Any]], port: int) -> list[Address]:
    """Addresses behind a port of a Service: of pods that are ready, else of those that end but still serve."""
    names = {item.get("name", "") for item in service["spec"]["ports"] if item["port"] == port}
    found: dict[str, list[Address]] = {"ready": [], "serving": []}
    for part in slices:
        targets = [item["port"] for item in part.get("ports") or [] if item.get("name", "") in names]
        for endpoint in part.get("endpoints") or []:
            for condition, addresses in found.items():
                if endpoint["conditions"].get(condition):
                    addresses += [(host, target) for host in endpoint["addresses"] for target in targets]
    return found["ready"] or found["serving"]


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
