"""Network namespaces of a cluster: the control plane's holds a switch, each node hangs on it by a cable.

Nothing is put into the machine's own namespace, and no namespace has a default route: what runs in the cluster
reaches nothing outside. The machine itself reaches the cluster through the forwarder alone.
"""

from ipaddress import IPv4Address
from pathlib import Path

from levada.cluster.plan import ClusterPlan, NodePlan, hardware_address
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


def _routed(namespace: str, address: IPv4Address) -> bool:
    return exists(namespace) and succeeds(["ip", "-netns", namespace, "route", "get", str(address)])


def has_switch(plan: ClusterPlan) -> bool:
    """Whether the control plane's namespace is there, its switch included."""
    return _routed(plan.control_namespace, plan.nodes[0].address)


def has_node(plan: ClusterPlan, node: NodePlan) -> bool:
    """Whether a node's namespace is there, its cable included."""
    return _routed(node.name, plan.control_address)


def create_switch(plan: ClusterPlan) -> None:
    """Make the control plane's namespace and the switch in it; whatever was there of the cluster goes."""
    remove(plan)
    run(["ip", "netns", "add", plan.control_namespace])
    _ip(
        plan.control_namespace,
        [
            "link set lo up",
            # an address of its own: else it is that of some cable, and changes when the cable is pulled
            f"link add {SWITCH} address {hardware_address(plan.control_address)} type bridge",
            f"addr add {plan.control_address}/{plan.node_network.prefixlen} dev {SWITCH}",
            f"link set {SWITCH} up",
        ],
    )


def create_node(plan: ClusterPlan, node: NodePlan) -> None:
    """Make a node's namespace and join it to the switch, anew if something of it is there."""
    remove_node(plan, node)
    run(["ip", "netns", "add", node.name])
    _sysctl(node.name, "net.ipv4.ip_forward=1")
    _ip(
        plan.control_namespace,
        [
            f"link add {node.link} type veth peer name {CABLE} address {node.mac} netns {node.name}",
            f"link set {node.link} master {SWITCH} up",
        ],
    )
    address = f"addr add {node.address}/{plan.node_network.prefixlen} dev {CABLE}"
    _ip(node.name, ["link set lo up", address, f"link set {CABLE} up"])


def route(plan: ClusterPlan) -> None:
    """Tell every namespace that is there which node has which pods, and by which hardware address it is reached.

    With that nobody has to ask for addresses (ARP). So what is sent to a node that is off or cut is lost without a word
    for as long as it lasts, as between machines that a cloud joins; and a link that is cut one way works the other way.
    """
    everybody = [(plan.control_namespace, plan.control_address), *((node.name, node.address) for node in plan.nodes)]
    for name, own in everybody:
        if not exists(name):
            continue
        cable = SWITCH if name == plan.control_namespace else CABLE
        # also those that an older version made, with addresses of the kernel's choice
        known = f"link set {cable} address {hardware_address(own)}"
        neighbours = [
            f"neigh replace {address} lladdr {hardware_address(address)} dev {cable} nud permanent"
            for other, address in everybody
            if other != name
        ]
        routes = [f"route replace {node.pods} via {node.address}" for node in plan.nodes if node.name != name]
        _ip(name, [known, *neighbours, *routes])


def unplug(plan: ClusterPlan, node: NodePlan) -> None:
    """Pull a node's cable out: nothing that its processes send from now on reaches anybody."""
    link = ["ip", "-netns", plan.control_namespace, "link"]
    if exists(plan.control_namespace) and succeeds([*link, "show", node.link]):
        run([*link, "delete", node.link])


def remove_node(plan: ClusterPlan, node: NodePlan) -> None:
    """Remove what is there of a node's namespace and cable."""
    unplug(plan, node)
    _remove(node.name)


def remove(plan: ClusterPlan) -> None:
    """Remove the namespaces that are there, and files that lost theirs."""
    for name in namespaces(plan):
        _remove(name)


def _remove(name: str) -> None:
    if (NAMESPACES / name).exists():
        if exists(name):
            run(["ip", "netns", "delete", name])
        else:
            (NAMESPACES / name).unlink()
