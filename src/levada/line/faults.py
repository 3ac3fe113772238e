"""The faults of a drill: each is done to a running pod or to what it stands on, and is over at its function's end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

from levada.cluster import Cluster, Direction
from levada.line.target import LineError, Target, ready_pods

Told = TypeVar("Told")

_PAUSE_SECONDS: Final = (0.5, 8.0)
_CUT_SECONDS: Final = (3.0, 15.0)
_OFF_SECONDS: Final = (2.0, 10.0)
_FULL_SECONDS: Final = (2.0, 8.0)
_BACK_SECONDS: Final = 180.0
_RESTART_SECONDS: Final = 600
_ROOM: Final = 64 << 20
"""Bytes that a disk which is to be full has left at first: a program must be able to start on it."""


@dataclass(frozen=True)
class Victim:
    """A running pod that a fault is done to, as it was when it was chosen."""

    target: Target
    pod: dict[str, Any]
    pids: Sequence[int] = ()
    """Processes of its first container on this machine; none where a kube context is the target."""

    @property
    def name(self) -> str:
        """Name of the pod."""
        return str(self.pod["metadata"]["name"])

    @property
    def container(self) -> str:
        """Name of its first container."""
        return str(self.pod["spec"]["containers"][0]["name"])

    @property
    def node(self) -> int:
        """Number of its node."""
        return int(self.pod["spec"]["nodeName"].removeprefix(f"{self.cluster.name}-"))

    @property
    def cluster(self) -> Cluster:
        """The machine's own cluster, on which it is.

        Raises:
            LineError: it is elsewhere.
        """
        if self.target.cluster is None:
            raise LineError("this fault needs the machine's own cluster")
        return self.target.cluster

    def look(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The pod as it is now, and what the kubelet says of its first container."""
        pod = json.loads(self.target.kubectl("get", "pod", self.name, "-o", "json"))
        statuses = pod["status"].get("containerStatuses", [])
        return pod, next((status for status in statuses if status["name"] == self.container), {})

    @property
    def identity(self) -> str:
        """Id of its first container, if it runs now."""
        return str(self.look()[1].get("containerID", ""))

    def ending(self, identity: str) -> dict[str, Any]:
        """How the container of an id ended; waits for that."""

        def told() -> dict[str, Any]:
            _, status = self.look()
            states = [status.get(key, {}).get("terminated", {}) for key in ("state", "lastState")]
            return next((state for state in states if state.get("containerID") == identity), {})

        return _wait(told, f"{self.name} goes on")

    def back(self, identity: str) -> str:
        """Id of the container that runs instead of the one of an id; waits until the pod is ready with it."""

        def told() -> str:
            pod, status = self.look()
            other = str(status.get("containerID", identity))
            return other if other != identity and ready_pods([pod]) else ""

        return _wait(told, f"{self.name} does not come back")


def _wait(told: Callable[[], Told], otherwise: str) -> Told:
    """The first answer that is not empty; LineError if there is none in time."""
    deadline = time.monotonic() + _BACK_SECONDS
    while True:
        with suppress(LineError):  # the API may be away for a moment
            if answer := told():
                return answer
        if time.monotonic() > deadline:
            raise LineError(f"{otherwise} after {_BACK_SECONDS:.0f} s: see levada status")
        time.sleep(0.5)


def kill(victim: Victim, chance: Random) -> str:
    """Kill the processes with signal 9; with a kube context, delete the pod without grace."""
    if victim.target.cluster is None:
        victim.target.kubectl("delete", "pod", victim.name, "--grace-period=0", "--force", "--wait=false")
        return f"{victim.name} deleted without grace"
    signal_all(victim.pids, signal.SIGKILL)
    return f"{victim.name} killed"


def pause(victim: Victim, chance: Random) -> str:
    """Have the processes stand still."""
    seconds = chance.uniform(*_PAUSE_SECONDS)
    with signalled(victim.pids, signal.SIGSTOP, signal.SIGCONT):
        time.sleep(seconds)
    return f"{victim.name} stood still for {seconds:.1f} s"


def cut(victim: Victim, chance: Random, *, direction: Direction = Direction.BOTH) -> str:
    """Cut the link of the pod's node, to the other nodes and to whoever is outside."""
    if victim.cluster.plan.node_count == 1:
        raise LineError("the only node has no other to be cut off from: levada cluster up --nodes 3")
    seconds = chance.uniform(*_CUT_SECONDS)
    try:
        victim.cluster.faults.cut(victim.node, direction=direction)
        time.sleep(seconds)
    finally:
        victim.cluster.faults.heal(victim.node)
    lost = {Direction.BOTH: "was cut off", Direction.INBOUND: "received nothing", Direction.OUTBOUND: "was not heard"}
    return f"node {victim.node} of {victim.name} {lost[direction]} for {seconds:.1f} s"


def node(victim: Victim, chance: Random) -> str:
    """Take the power of the pod's node and give it back."""
    seconds = chance.uniform(*_OFF_SECONDS)
    try:
        victim.cluster.faults.kill(victim.node)
        time.sleep(seconds)
    finally:
        victim.cluster.faults.heal(victim.node)
    victim.cluster.faults.wait_ready([victim.node], seconds=_BACK_SECONDS)
    return f"node {victim.node} of {victim.name} was off for {seconds:.1f} s"


def oom(victim: Victim, chance: Random) -> str:
    """Have the kernel kill the container because all memory that it may have is taken."""
    identity = victim.identity
    victim.cluster.faults.exhaust(victim.target.namespace, victim.name, victim.container)
    reason = victim.ending(identity)["reason"]
    if reason != "OOMKilled":
        raise LineError(f"{victim.name} was to run out of memory, but ended with {reason}")
    return f"{victim.name} ran out of memory and was killed by the kernel"


def disk(victim: Victim, chance: Random) -> str:
    """Fill the disk under the pod's volume, and free it some time after the container has ended of that."""
    faults, seconds, identity = victim.cluster.faults, chance.uniform(*_FULL_SECONDS), victim.identity
    try:
        faults.shrink(victim.target.namespace, victim.name, room=_ROOM)
        identity = victim.back(identity)
        faults.fill(victim.target.namespace, victim.name)
        code = victim.ending(identity)["exitCode"]
        time.sleep(seconds)
    finally:
        faults.widen(victim.node)
    victim.back(identity)
    return f"{victim.name} found its disk full and ended with {code}; {seconds:.1f} s later it was freed"


def restart(victim: Victim, chance: Random) -> str:
    """Restart all pods of the component, as many at a time as its workload allows."""
    labels = victim.pod["metadata"]["labels"]
    kept = ("app.kubernetes.io/component", "levada.io/pipeline")
    selector = ",".join(f"{label}={labels[label]}" for label in kept if label in labels)
    found = victim.target.objects("deployments,statefulsets", selector)
    names = [f"{workload['kind'].lower()}/{workload['metadata']['name']}" for workload in found]
    victim.target.kubectl("rollout", "restart", *names)
    for name in names:
        victim.target.kubectl(
            "rollout", "status", name, f"--timeout={_RESTART_SECONDS}s", timeout=_RESTART_SECONDS + 10
        )
    return f"{' and '.join(names)} restarted, one pod after another"


Fault = Callable[[Victim, Random], str]
"""Does a fault, for a time that chance decides, and undoes it; what was done, for a person."""

KINDS: Final[dict[str, Fault]] = {
    "kill": kill,
    "pause": pause,
    "cut": cut,
    "cut-in": partial(cut, direction=Direction.INBOUND),
    "cut-out": partial(cut, direction=Direction.OUTBOUND),
    "node": node,
    "oom": oom,
    "disk": disk,
    "restart": restart,
}
ANYWHERE: Final = ("kill", "restart")
"""Kinds that work with a kube context too."""


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def signalled(pids: Sequence[int], first: signal.Signals, after: signal.Signals) -> Iterator[None]:
    """One signal at the beginning and another at the end."""
    signal_all(pids, first)
    try:
        yield
    finally:
        signal_all(pids, after)
