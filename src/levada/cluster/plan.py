"""Names, folders and addresses of a cluster: all of them follow from its name, its index and a node's number.

Clusters live in 198.18.0.0/15 (RFC 2544, routed nowhere), each in a /18 of its own, so that several run side by
side and can later be joined. Inside a /18: nodes in the first /24, services in a /20, pods in a /19 (a /24 a node).
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from pathlib import Path

STATE = Path("/var/lib/levada/clusters")
RANGE = IPv4Network("198.18.0.0/15")
MAX_CLUSTERS = 8
MAX_NODES = 9
NAME = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")
REGION = "local"


def hardware_address(address: IPv4Address) -> str:
    """A locally administered MAC address that no other address of ours has."""
    return "02:00:" + address.packed.hex(":")


@dataclass(frozen=True)
class NodePlan:
    """One node: a network, mount and process namespace with its own containerd, kubelet and kube-proxy."""

    cluster: str
    number: int
    address: IPv4Address
    pods: IPv4Network
    directory: Path

    @property
    def name(self) -> str:
        """Name of the Kubernetes node and of its network namespace."""
        return f"{self.cluster}-{self.number}"

    @property
    def zone(self) -> str:
        """Value of the label topology.kubernetes.io/zone: a, b, c, …"""
        return chr(ord("a") + self.number - 1)

    @property
    def link(self) -> str:
        """The node's cable: name of its end at the switch in the control namespace."""
        return f"node{self.number}"

    @property
    def mac(self) -> str:
        """Hardware address of the cable's end in the node: follows from the address, so a new cable is no stranger."""
        return hardware_address(self.address)

    @property
    def cgroup(self) -> str:
        """Path below the root of every cgroup hierarchy."""
        return f"levada.{self.cluster}/{self.link}"

    @property
    def socket(self) -> Path:
        """Socket of the node's containerd."""
        return self.directory / "containerd.sock"


@dataclass(frozen=True)
class ClusterPlan:
    """A cluster by name; `index` is the lowest number that no other cluster on this machine had when it was made."""

    name: str
    index: int = 0
    node_count: int = 1

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"cluster name {self.name!r}: use at most 30 lower-case letters, digits and '-', a letter first"
            )
        if not 0 <= self.index < MAX_CLUSTERS:
            raise ValueError(f"cluster index {self.index}: there is room for {MAX_CLUSTERS} clusters on one machine")
        if not 1 <= self.node_count <= MAX_NODES:
            raise ValueError(f"{self.node_count} nodes: a cluster has 1 to {MAX_NODES}")

    @property
    def directory(self) -> Path:
        """Everything the cluster keeps."""
        return STATE / self.name

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator, for use from this machine."""
        return self.directory / "kubeconfig"

    @property
    def cgroup(self) -> str:
        """Path below the root of every cgroup hierarchy; every process of the cluster is under it."""
        return f"levada.{self.name}"

    @property
    def control_namespace(self) -> str:
        """Network namespace of the control plane and of the switch that joins the nodes."""
        return f"{self.name}-control"

    @property
    def block(self) -> IPv4Network:
        """All addresses of the cluster."""
        return next(islice(RANGE.subnets(new_prefix=18), self.index, None))

    @property
    def node_network(self) -> IPv4Network:
        """Addresses of the control plane and the nodes."""
        return IPv4Network((self.block.network_address, 24))

    @property
    def services(self) -> IPv4Network:
        """Cluster IPs of Services."""
        return IPv4Network((self.block.network_address + 0x1000, 20))

    @property
    def pods(self) -> IPv4Network:
        """Addresses of all pods."""
        return IPv4Network((self.block.network_address + 0x2000, 19))

    @property
    def control_address(self) -> IPv4Address:
        """Where the API server listens."""
        return self.node_network[1]

    @property
    def api_service(self) -> IPv4Address:
        """Cluster IP of the Service `kubernetes`."""
        return self.services[1]

    @property
    def dns_service(self) -> IPv4Address:
        """Cluster IP of CoreDNS."""
        return self.services[10]

    @property
    def loopback(self) -> IPv4Address:
        """The only address of this machine that anything of the cluster listens on."""
        return IPv4Address("127.0.0.1")

    @property
    def api_port(self) -> int:
        """Port on 127.0.0.1 that the API server is reached by, if it is free."""
        return 16443 + self.index

    @property
    def nodes(self) -> tuple[NodePlan, ...]:
        """The nodes, by number from 1."""
        ranges = list(islice(self.pods.subnets(new_prefix=24), self.node_count))
        return tuple(
            NodePlan(self.name, n, self.node_network[10 + n], ranges[n - 1], self.directory / "nodes" / str(n))
            for n in range(1, self.node_count + 1)
        )
