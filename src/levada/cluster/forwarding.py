"""The ports of this machine's 127.0.0.1 that lead into a cluster, and the process that serves them."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from levada.cluster import cgroups, machines
from levada.cluster.credentials import SECURE_PORT, Credentials
from levada.cluster.errors import ClusterError
from levada.cluster.files import write
from levada.cluster.network import NAMESPACES
from levada.cluster.plan import ClusterPlan

SCRIPT = Path(__file__).parent / "forwarder.py"
SECONDS = 10.0


class Forwarding:
    """The table of forwarded ports of one cluster; it outlives the process that serves it."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._folder = plan.directory / "forwarder"
        self._table = self._folder / "table.json"
        self._listening = self._folder / "listening.json"
        self._cgroup = f"{plan.cgroup}/forwarder"

    def ensure(self, credentials: Credentials) -> int:
        """Have the process serve the table, started if it is not running; the API server's port."""
        self._folder.mkdir(parents=True, exist_ok=True)
        address = [str(self._plan.control_address), SECURE_PORT]
        with self._locked():
            with self._changing() as table:
                table |= {
                    "namespace": str(NAMESPACES / self._plan.control_namespace),
                    "api": {
                        "address": address,
                        "authority": str(credentials.authority.pair.certificate),
                        "certificate": str(credentials.admin.certificate),
                        "key": str(credentials.admin.key),
                    },
                }
                port = self._choose(table["routes"], {"address": address}, self._plan.api_port)
            self._serve([port])
        return port

    def forward(self, namespace: str, service: str, port: int, preferred: int | None) -> int:
        """Port on 127.0.0.1 that leads to a Service; the same one each time it is asked for."""
        with self._locked():
            with self._changing() as table:
                local = self._choose(table["routes"], {"service": [namespace, service, port]}, preferred or port)
            self._serve([local])
        return local

    def served(self, namespace: str, service: str, port: int) -> int | None:
        """The port that leads to a Service, if one does at this moment."""
        wanted = {"service": [namespace, service, port]}
        found = [int(local) for local, route in self._routes().items() if route == wanted]
        return found[0] if found and self.pids() and found[0] in self._ports() else None

    def routes(self) -> dict[int, str]:
        """What each port leads to, as a person writes it."""
        return {
            int(port): "{}/{}:{}".format(*route["service"]) if "service" in route else "API server"
            for port, route in self._routes().items()
        }

    def _routes(self) -> dict[str, dict[str, list[Any]]]:
        routes: dict[str, dict[str, list[Any]]] = {}
        return json.loads(self._table.read_text())["routes"] if self._table.exists() else routes

    def pids(self) -> list[int]:
        """The process, if it runs."""
        return list(cgroups.processes(self._cgroup))

    def stop(self) -> None:
        """End the process; the table stays."""
        cgroups.kill(self._cgroup)
        self._listening.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, until the process listens: a port that it has just opened must not look like a stranger's."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The table, written back whole if it changed."""
        before = self._table.read_text() if self._table.exists() else '{"routes": {}}'
        table = json.loads(before)
        yield table
        after = json.dumps(table, indent=2)
        if after != before:
            write(self._table, after.encode())

    def _choose(self, routes: dict[str, Any], route: dict[str, Any], preferred: int) -> int:
        """The port that a route has, or a free one for it: the preferred one if possible."""
        listening = self._ports() if self.pids() else set()
        for held in [int(port) for port, other in routes.items() if other == route]:
            if held in listening or _free(held):
                return held
            del routes[str(held)]  # somebody else took it while the cluster was down
        port = preferred if preferred >= 1024 and str(preferred) not in routes and _free(preferred) else _any_free()
        routes[str(port)] = route
        return port

    def _ports(self) -> set[int]:
        return set(json.loads(self._listening.read_text())) if self._listening.exists() else set()

    def _serve(self, wanted: list[int]) -> None:
        """Start the process or have it read the table again, then wait until it listens on the wanted ports."""
        pids = self.pids()
        if pids and self._ports().issuperset(wanted):
            return
        log = self._folder / "forwarder.log"
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGHUP)
        else:
            self._listening.unlink(missing_ok=True)
            cgroups.create(self._cgroup)
            machines.spawn([*machines.python(SCRIPT), str(self._table)], log, self._cgroup)
        deadline = time.monotonic() + SECONDS
        while not self._ports().issuperset(wanted):
            if time.monotonic() > deadline:
                raise ClusterError(f"the forwarder does not listen on 127.0.0.1 ports {wanted}: see {log}")
            time.sleep(0.05)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
