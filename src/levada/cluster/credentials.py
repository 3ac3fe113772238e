"""Who is who in a cluster: each component's certificate and kubeconfig."""

from dataclasses import dataclass
from pathlib import Path

from levada.cluster.files import write
from levada.cluster.pki import (
    SERVER,
    Authority,
    Pair,
    public_key,
    signing_key,
    write_kubeconfig,
)
from levada.cluster.plan import ClusterPlan, NodePlan

DOMAIN = "cluster.local"
SECURE_PORT = 6443


@dataclass(frozen=True)
class NodeCredentials:
    """What a node holds: nothing here lets it act for another node."""

    kubelet: Path
    proxy: Path
    serving: Pair


@dataclass(frozen=True)
class Credentials:
    """Everything issued for a cluster; `authority` signs all but what the front proxy shows."""

    authority: Authority
    front_proxy: Authority
    front_proxy_client: Pair
    apiserver: Pair
    apiserver_kubelet: Pair
    service_account_key: Path
    service_account_public: Path
    admin: Pair
    controller_manager: Path
    scheduler: Path
    metrics_server: Pair
    nodes: dict[int, NodeCredentials]


def issue(plan: ClusterPlan) -> Credentials:
    """Make what is missing, renew what ends within two months, keep the rest."""
    folder = plan.directory / "pki"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = Authority(folder, "ca")
    front_proxy = Authority(folder, "front-proxy-ca")
    service_account = signing_key(folder / "service-account.key")
    service_account_public = folder / "service-account.pub"
    write(service_account_public, public_key(service_account))
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}")
    loopback = plan.loopback
    server = f"https://{plan.control_address}:{SECURE_PORT}"

    def kubeconfig(file: str, user: str, *groups: str) -> Path:
        path = folder / f"{file}.kubeconfig"
        pair = authority.issue(file, name=user, groups=groups)
        write_kubeconfig(path, name=plan.name, server=server, authority=authority, user=pair)
        return path

    def node(node: NodePlan) -> NodeCredentials:
        serving = authority.issue(
            f"{node.name}-serving",
            name=f"system:node:{node.name}",
            groups=("system:nodes",),
            usage=SERVER,
            hosts=(node.name, node.address),
        )
        kubelet = kubeconfig(f"{node.name}-kubelet", f"system:node:{node.name}", "system:nodes")
        return NodeCredentials(kubelet, kubeconfig(f"{node.name}-proxy", "system:kube-proxy"), serving)

    return Credentials(
        authority=authority,
        front_proxy=front_proxy,
        front_proxy_client=front_proxy.issue("front-proxy-client", name="front-proxy-client"),
        apiserver=authority.issue(
            "apiserver",
            name="kube-apiserver",
            usage=SERVER,
            hosts=(*service, "localhost", plan.api_service, plan.control_address, loopback),
        ),
        apiserver_kubelet=authority.issue(
            "apiserver-kubelet", name="kube-apiserver-kubelet-client", groups=("system:masters",)
        ),
        service_account_key=service_account,
        service_account_public=service_account_public,
        admin=authority.issue("admin", name="levada-admin", groups=("system:masters",)),
        controller_manager=kubeconfig("controller-manager", "system:kube-controller-manager"),
        scheduler=kubeconfig("scheduler", "system:kube-scheduler"),
        metrics_server=authority.issue(
            "metrics-server", name="metrics-server", usage=SERVER, hosts=("metrics-server.kube-system.svc",)
        ),
        nodes={item.number: node(item) for item in plan.nodes},
    )
