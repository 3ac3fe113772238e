"""What can be done to the nodes of a cluster to see what the line makes of it, and how to undo it.

Every fault is undone by its opposite, by `Faults.heal` and by `levada cluster up`; `levada cluster down` works in any
of them. What is in effect is read from the kernel each time, so a drill that was killed leaves nothing unknown.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from levada.cluster import cgroups, disks, lifecycle, links, machines, network, readiness
from levada.cluster.errors import ClusterError
from levada.cluster.links import Direction
from levada.cluster.plan import ClusterPlan, NodePlan
from levada.cluster.progress import Progress
from levada.cluster.shell import Kubectl, run, until

GLUTTON = Path(__file__).parent / "glutton.py"
Peer = int | Literal["control"]
"""A node's number, or the control plane, through which everything outside the cluster is reached too."""


class Faults:
    """Faults of one cluster's nodes, named by their numbers from 1; ClusterError for one that is not there."""

    def __init__(self, plan: ClusterPlan, kubectl: Kubectl, progress: Progress) -> None:
        self._plan, self._kubectl, self._progress = plan, kubectl, progress

    def kill(self, number: int) -> None:
        """Take a node's power: its processes end at once and nothing of it says good-bye to anybody.

        What its processes have written stays on its disk, synced or not; that is where a real loss of power is harsher.
        """
        node = self._node(number)
        with contextlib.suppress(ClusterError):  # one that waits for the disk dies a moment later than the others
            cgroups.freeze(node.cgroup, timeout=1)  # so none of them sees the cable go
        network.unplug(self._plan, node)
        cgroups.kill(node.cgroup)
        network.remove_node(self._plan, node)

    def start(self, number: int) -> None:
        """Start a node that was killed, with its data; back when it runs, before it is ready: see `wait_ready`."""
        lifecycle.start_node(self._plan, self._node(number), self._progress)

    def pause(self, number: int) -> None:
        """Have every process of a node stand still, its pods' too; its connections stay open and are not answered."""
        cgroups.freeze(self._node(number).cgroup)

    def resume(self, number: int) -> None:
        """Let the processes of a paused node go on."""
        cgroups.thaw(self._node(number).cgroup)

    def cut(self, number: int, *, direction: Direction = Direction.BOTH, peers: Sequence[Peer] | None = None) -> None:
        """Break the link of a node, to everybody or to some peers only, in both directions or in one.

        INBOUND: the node receives nothing; OUTBOUND: nothing it sends arrives. Cuts add up.
        """
        node = self._node(number)
        names = [port for port in links.ports(self._plan) if port != node.link]
        if peers is not None:
            names = [network.SWITCH if peer == "control" else self._node(peer).link for peer in peers]
        if node.link in names:
            raise ClusterError(f"node {node.name} is no peer of its own: name another node, or control")
        links.cut(self._plan, links.between(node.link, names, direction))

    def heal(self, number: int | None = None) -> None:
        """Undo every fault of a node, or of all: mend its links, resume it, widen its disks, start it if it was off."""
        nodes = self._plan.nodes if number is None else [self._node(number)]
        links.mend(self._plan, None if number is None else nodes[0].link)
        for node in nodes:
            cgroups.thaw(node.cgroup)
            self.widen(node.number)
            if machines.init(node.cgroup) is None:
                self.start(node.number)

    def active(self) -> list[str]:
        """The faults in effect, a sentence each; a node that does not run is one, whatever ended it."""
        return list(active(self._plan))

    def wait_ready(self, numbers: Iterable[int] | None = None, *, seconds: float = 60) -> None:
        """Wait until nodes, or all, are ready as the API server sees it; ClusterError if they are not in time."""
        names = {self._node(number).name for number in numbers} if numbers is not None else None

        def check() -> None:
            late = [
                name
                for name, ready in readiness.nodes(self._plan, self._kubectl).items()
                if not ready and (names is None or name in names)
            ]
            if late:
                raise ClusterError(f"not ready after {seconds:.0f} s: node {', '.join(late)}")

        until(check, seconds)

    def processes(self, namespace: str, pod: str) -> dict[str, list[int]]:
        """Ids, on this machine, of a pod's processes by container, for os.kill; a container's first process first."""
        node, containers = self._running(namespace, pod)
        return {name: machines.of_container(node.cgroup, identity) for name, identity in containers.items()}

    def exhaust(self, namespace: str, pod: str, container: str) -> None:
        """Take the memory that a container may have until the kernel's out-of-memory killer ends its first process.

        ClusterError if the container does not run, if its memory is not limited, or if the kernel let it live.
        """
        node, containers = self._running(namespace, pod)
        identity = containers.get(container, "")
        pids = machines.of_container(node.cgroup, identity)
        if not pids:
            raise ClusterError(f"container {container} of pod {namespace}/{pod} does not run")
        group = next(cgroups.find(node.cgroup, identity))
        limit = cgroups.memory_limit(group)
        if limit is None:
            raise ClusterError(f"container {container} of pod {namespace}/{pod} has no limit of memory")
        # The kernel takes who has the highest score. To lower the helper's needs a right that few machines grant.
        Path(f"/proc/{pids[0]}/oom_score_adj").write_text("1000")
        helper = [*machines.python(GLUTTON), f"{cgroups.memory(group)}/cgroup.procs", str(pids[0]), str(limit)]
        try:
            run(helper, timeout=60)
        except ClusterError as error:
            failed = error

            # The helper may have been ended too: in version 2 with all of its group, else by a second shortage while
            # the first process, whose memory the kernel takes at once, was slow to end.
            def ended() -> None:
                if pids[0] in machines.of_container(node.cgroup, identity):
                    raise failed

            until(ended, 10)

    def shrink(self, namespace: str, pod: str, *, room: int) -> None:
        """Move the volume of a pod to a disk with `room` bytes left; what has it open is killed, as at `widen`.

        If the node loses its power before, the disk is lost with all data, like a real one that breaks.
        """
        disks.shrink(*self._volume(namespace, pod), room)

    def fill(self, namespace: str, pod: str) -> None:
        """Take all the room of the small disk that a pod's volume is on."""
        disks.fill(*self._volume(namespace, pod))

    def widen(self, number: int) -> None:
        """Move the volumes of a node that are on small disks back to its own, with what was written since."""
        for volume in disks.small(self._node(number)):
            disks.widen(self._node(number), volume)

    def _running(self, namespace: str, pod: str) -> tuple[NodePlan, dict[str, str]]:
        """The node of a pod, and its running containers: name → id."""
        found = json.loads(self._kubectl("get", "pod", pod, "-n", namespace, "-o", "json"))
        containers = {
            status["name"]: status["containerID"].rpartition("/")[2]
            for status in found["status"].get("containerStatuses", [])
            if "running" in status["state"]
        }
        return self._of(found), containers

    def _volume(self, namespace: str, pod: str) -> tuple[NodePlan, Path]:
        """The node of a pod, and the folder of its volume."""
        found = json.loads(self._kubectl("get", "pod", pod, "-n", namespace, "-o", "json"))
        sources = [
            part["persistentVolumeClaim"] for part in found["spec"]["volumes"] if "persistentVolumeClaim" in part
        ]
        if not sources:
            raise ClusterError(f"pod {namespace}/{pod} has no volume")
        claim = json.loads(self._kubectl("get", "pvc", sources[0]["claimName"], "-n", namespace, "-o", "json"))
        volume = json.loads(self._kubectl("get", "pv", claim["spec"]["volumeName"], "-o", "json"))
        return self._of(found), Path(volume["spec"]["hostPath"]["path"])

    def _of(self, pod: dict[str, Any]) -> NodePlan:
        """The node of a pod."""
        name = pod["spec"].get("nodeName")
        node = next((node for node in self._plan.nodes if node.name == name), None)
        if node is None:
            raise ClusterError(f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']} is on no node")
        return node

    def _node(self, number: int) -> NodePlan:
        if not 1 <= number <= self._plan.node_count:
            raise ClusterError(
                f"cluster {self._plan.name} has no node {number}: its nodes are 1 to {self._plan.node_count}"
            )
        return self._plan.nodes[number - 1]


def active(plan: ClusterPlan) -> Iterator[str]:
    """The faults in effect on a cluster."""
    for node in plan.nodes:
        if machines.init(node.cgroup) is None:
            yield f"{node.name} is off"
        elif cgroups.frozen(node.cgroup):
            yield f"{node.name} is paused"
        for volume in disks.small(node):
            yield f"volume {volume.name} of {node.name} is on a small disk"
    yield from links.tell(links.broken(plan), links.ports(plan))
