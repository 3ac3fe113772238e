"""A node: containerd, kubelet and kube-proxy on a machine of its own."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from levada.cluster.control import LOST_AFTER
from levada.cluster.credentials import DOMAIN, Credentials
from levada.cluster.files import write
from levada.cluster.machines import Machine
from levada.cluster.plan import REGION, ClusterPlan, NodePlan

CNI_PLUGINS = Path("/usr/lib/cni")
# What containerd and kubelet keep at fixed places, whatever they are told: each node sees a folder of its own there.
PRIVATE = (Path("/var/lib/kubelet"), Path("/var/log"))
CNI_STATE = Path("/var/lib/cni")
CAP_SYS_RESOURCE = 24
# The links of pods of an earlier machine go when the kernel comes to it, each with the route to its pod's address. A
# new pod may have that address by then (see CNI_STATE), and would share the route, and its end.
_NO_LINKS = [
    "sh",
    "-c",
    r"ip -oneline link show type veth | sed -n 's/^[0-9]*: \(veth[0-9a-f]*\)@.*/\1/p' |"
    " while read -r link; do ip link delete $link || :; done",  # it may just have gone
]


def may_lower_oom_score() -> bool:
    """Whether this machine lets us protect processes from the kernel's out-of-memory killer."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_RESOURCE & 1)


def reserved(nodes: int, *, cores: int, memory: int, disk: int) -> dict[str, str]:
    """What a node keeps from pods so that its share of the machine is left; memory and disk in bytes.

    A kubelet reports the whole machine as its capacity, so each node of several keeps back what is for the others.
    """
    return {
        "cpu": f"{cores * 1000 - cores * 1000 // nodes}m",
        "memory": str(memory - memory // nodes),
        "ephemeral-storage": str(disk - disk // nodes),
    }


def _reserved(plan: ClusterPlan) -> dict[str, str]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    disk = os.statvfs(plan.directory)
    return reserved(plan.node_count, cores=os.cpu_count() or 1, memory=memory, disk=disk.f_blocks * disk.f_frsize)


def machine(plan: ClusterPlan, node: NodePlan, credentials: Credentials, kubernetes: Path, pause: str) -> Machine:
    """The node's machine, its configuration written; `pause` is the image that holds a pod's namespaces."""
    folder = node.directory
    for path in (folder / "cni", folder / "volumes", *(_own(node, path) for path in PRIVATE)):
        path.mkdir(parents=True, exist_ok=True)
    issued = credentials.nodes[node.number]
    containerd, kubelet, proxy = (folder / name for name in ("containerd.toml", "kubelet.yaml", "kube-proxy.yaml"))
    write(containerd, _containerd(node, pause).encode())
    write(folder / "cni" / "10-levada.conflist", _cni(plan, node).encode())
    write(kubelet, yaml.safe_dump(_kubelet(plan, node, credentials)).encode())
    write(proxy, yaml.safe_dump(_proxy(plan, node, issued.proxy)).encode())
    return Machine(
        name=node.name,
        namespace=node.name,
        cgroup=node.cgroup,
        directory=folder,
        programs={
            "containerd": ["/usr/bin/containerd", "--config", containerd],
            "kubelet": [
                kubernetes / "kubelet",
                f"--config={kubelet}",
                f"--kubeconfig={issued.kubelet}",
                f"--node-ip={node.address}",
                f"--hostname-override={node.name}",
                f"--root-dir={folder / 'kubelet'}",
                f"--node-labels=topology.kubernetes.io/region={REGION},topology.kubernetes.io/zone={node.zone}",
            ],
            "kube-proxy": [kubernetes / "kube-proxy", f"--config={proxy}"],
        },
        setup=[_NO_LINKS, *_mounts(node)],
        inputs=[containerd, kubelet, proxy, issued.kubelet, issued.proxy, issued.serving.certificate],
    )


def _own(node: NodePlan, path: Path) -> Path:
    return node.directory / "root" / path.relative_to("/")


def _mounts(node: NodePlan) -> list[list[str | Path]]:
    """Commands that give the machine its own view of the file system."""
    own: list[list[str | Path]] = [["mount", "--bind", _own(node, path), path] for path in PRIVATE]
    return [
        ["mount", "--make-rshared", "/"],  # what kubelet mounts for a pod must reach the pod
        # a mount of its own: else the kubelet finds no file system to measure and to watch
        ["mount", "--bind", node.directory, node.directory],
        ["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"],
        ["mkdir", "-p", CNI_STATE, *PRIVATE],
        # no pod outlives the machine, so no address of a pod may be remembered as taken
        ["mount", "-t", "tmpfs", "-o", "mode=755", "cni", CNI_STATE],
        *own,
    ]


def _containerd(node: NodePlan, pause: str) -> str:
    # containerd 1.6 reads TOML; a JSON string is a TOML string
    restrict = json.dumps(not may_lower_oom_score())
    return f"""version = 2
root = {json.dumps(str(node.directory / "containerd"))}
state = "/run/containerd"
[grpc]
  address = {json.dumps(str(node.socket))}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {json.dumps(pause)}
  restrict_oom_score_adj = {restrict}
  tolerate_missing_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {json.dumps(str(CNI_PLUGINS))}
    conf_dir = {json.dumps(str(node.directory / "cni"))}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""


def _cni(plan: ClusterPlan, node: NodePlan) -> str:
    # ptp, not bridge: every packet between pods is routed, so that kube-proxy sees it without br_netfilter
    ptp = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(node.pods)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": plan.name, "plugins": [ptp, portmap]}, indent=2)


def _kubelet(plan: ClusterPlan, node: NodePlan, credentials: Credentials) -> dict[str, Any]:
    serving = credentials.nodes[node.number].serving
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        # A changed ConfigMap, such as a new pipeline, is in its pods within seconds.
        "syncFrequency": "10s",
        "address": str(node.address),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(credentials.authority.pair.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [str(plan.dns_service)],
        "clusterDomain": DOMAIN,
        "resolvConf": "/dev/null",  # no name outside the cluster can be reached, so none need resolve
        "maxPods": 110,
        "kubeReserved": _reserved(plan),
        "enforceNodeAllocatable": [],
        "nodeLeaseDurationSeconds": LOST_AFTER,
        # a node that was lost says so itself when it is back: looked at often, sent only if something changed
        "nodeStatusUpdateFrequency": "5s",
        "nodeStatusReportFrequency": "5m",
        # absolute: per cents of a big disk would evict with gigabytes to spare
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        "evictionPressureTransitionPeriod": "30s",
        "imageGCHighThresholdPercent": 100,  # images come from files: one that is collected cannot be pulled again
        # what ends is started again soon, the first time too: it was mostly a drill that ended it
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
    }
    if not may_lower_oom_score():
        config["oomScoreAdj"] = 0
    return config


def _proxy(plan: ClusterPlan, node: NodePlan, kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": str(plan.pods),
        "hostnameOverride": node.name,
        "conntrack": {"maxPerCore": 0},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    } | ({} if may_lower_oom_score() else {"oomScoreAdj": 0})
