"""What of a cluster runs just now."""

from dataclasses import dataclass

from levada.cluster import faults, machines, readiness
from levada.cluster.errors import ClusterError
from levada.cluster.forwarding import Forwarding
from levada.cluster.plan import ClusterPlan
from levada.cluster.shell import Kubectl


@dataclass(frozen=True)
class Part:
    """One program that should run on a machine of the cluster; `running` is None if it does not."""

    machine: str
    program: str
    running: machines.Running | None


@dataclass(frozen=True)
class Status:
    """A cluster at one moment: for each node whether it is Ready, for each local port what it leads to.

    `faults` are sentences about nodes that are off or paused and links that are cut, whatever did it. `trouble` says
    why the cluster cannot be used; empty if it can.
    """

    parts: tuple[Part, ...]
    nodes: dict[str, bool]
    ports: dict[int, str]
    faults: tuple[str, ...]
    trouble: str


def status(plan: ClusterPlan, kubectl: Kubectl) -> Status:
    """Look at a cluster."""
    forwarding = Forwarding(plan)
    folders = [("control", f"{plan.cgroup}/control", plan.directory / "control")]
    folders += [(node.name, node.cgroup, node.directory) for node in plan.nodes]
    parts = [
        Part(machine, program, running)
        for machine, cgroup, folder in folders
        for program, running in machines.programs(cgroup, folder).items()
    ]
    forwarder = [machines.describe("forwarder", pid) for pid in forwarding.pids()]
    parts.append(Part("-", "forwarder", forwarder[0] if forwarder else None))
    nodes = dict.fromkeys((node.name for node in plan.nodes), False)
    stopped = [part.program for part in parts if not part.running]
    trouble = f"not running: {', '.join(stopped)}" if stopped else ""
    try:
        nodes = readiness.nodes(plan, kubectl)
        readiness.check(plan, kubectl)
    except ClusterError as error:
        trouble = trouble or str(error)
    return Status(tuple(parts), nodes, forwarding.routes(), tuple(faults.active(plan)), trouble)
