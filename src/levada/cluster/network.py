"""Network namespaces of a cluster: the control plane's holds a switch, each node hangs on it by a cable.

Nothing is put into the machine's own namespace, and no namespace has a default route: what runs in the cluster
reaches nothing outside. The machine itself reaches the cluster through the forwarder alone.
"""

from pathlib import Path

from levada.cluster.plan import ClusterPlan, NodePlan
from levada.cluster.shell import run, succeeds

NAMESPACES = Path("/run/netns")
SWITCH = "switch"
CABLE = "eth0"


def exists(namespace: str) -> bool:
    """Whether a network namespace is there and whole (a file without its mount is what a lost mount leaves)."""
    path = NAMESPACES / namespace
    return path.exists() and path.stat().st_dev != NAMESPACES.stat().st_dev


def namespaces(plan: ClusterPlan) -> list[str]:
    """Names of all namespaces of a cluster."""
    return [plan.control_namespace, *(node.name for node in plan.nodes)]


def _ip(namespace: str, commands: list[str]) -> None:
    run(["ip", "-netns", namespace, "-batch", "-"], stdin="\n".join(commands) + "\n")


def _sysctl(namespace: str, *settings: str) -> None:
    # nsenter, not `ip netns exec`, which would mount another /sys
    run(["nsenter", f"--net={NAMESPACES / namespace}", "sysctl", "-qw", *settings])


def whole(plan: ClusterPlan) -> bool:
    """Whether all namespaces of a cluster are there, up to the last cable."""
    last = plan.nodes[-1].name
    routed = ["ip", "-netns", last, "route", "get", str(plan.control_address)]
    return all(exists(name) for name in namespaces(plan)) and succeeds(routed)


def create(plan: ClusterPlan) -> None:
    """Make the namespaces and what joins them, anew if some are there."""
    remove(plan)
    for name in namespaces(plan):
        run(["ip", "netns", "add", name])
    control = plan.control_namespace
    _ip(
        control,
        [
            "link set lo up",
            f"link add {SWITCH} type bridge",
            f"addr add {plan.control_address}/{plan.node_network.prefixlen} dev {SWITCH}",
            f"link set {SWITCH} up",
        ],
    )
    for node in plan.nodes:
        _connect(plan, node)
    # Cluster IPs exist only where kube-proxy runs: the control plane and the forwarder reach them by the first node.
    _ip(control, [f"route add {plan.services} via {plan.nodes[0].address}"])


def _connect(plan: ClusterPlan, node: NodePlan) -> None:
    control = plan.control_namespace
    _ip(control, [f"link add {node.link} type veth peer name {CABLE} netns {node.name}"])
    _ip(control, [f"link set {node.link} master {SWITCH} up", f"route add {node.pods} via {node.address}"])
    others = [f"route add {other.pods} via {other.address}" for other in plan.nodes if other != node]
    _ip(
        node.name,
        [
            "link set lo up",
            f"addr add {node.address}/{plan.node_network.prefixlen} dev {CABLE}",
            f"link set {CABLE} up",
            *others,
        ],
    )
    _sysctl(node.name, "net.ipv4.ip_forward=1")


def remove(plan: ClusterPlan) -> None:
    """Remove the namespaces that are there, and files that lost theirs."""
    for name in namespaces(plan):
        if (NAMESPACES / name).exists():
            if exists(name):
                run(["ip", "netns", "delete", name])
            else:
                (NAMESPACES / name).unlink()
