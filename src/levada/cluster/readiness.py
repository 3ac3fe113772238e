"""Whether a cluster that was started can be used.

What the API server says of a node or a pod can be from before the last stop, so only what was said, or started,
after the node's machine did counts.
"""

import datetime
from typing import Any

from levada.cluster import machines
from levada.cluster.errors import ClusterError
from levada.cluster.plan import ClusterPlan, NodePlan
from levada.cluster.shell import Kubectl

METRICS_SERVERS = PROVISIONERS = 1


def addons(plan: ClusterPlan) -> dict[str, tuple[str, int]]:
    """By namespace: label selector of the addons' pods, and how many there are to be."""
    return {
        "kube-system": ("k8s-app in (kube-dns,metrics-server)", plan.node_count + METRICS_SERVERS),
        "local-path-storage": ("app=local-path-provisioner", PROVISIONERS),
    }


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def nodes(plan: ClusterPlan, kubectl: Kubectl) -> dict[str, bool]:
    """Whether each node is Ready, and has said so since its machine started."""
    leases = {item["metadata"]["name"]: item["spec"] for item in kubectl.items("leases", "-n", "kube-node-lease")}
    known = {item["metadata"]["name"]: item for item in kubectl.items("nodes")}

    def ready(node: NodePlan) -> bool:
        started = machines.started(node.cgroup)
        if started is None or node.name not in known or node.name not in leases:
            return False
        conditions = {item["type"]: item["status"] for item in known[node.name]["status"].get("conditions", [])}
        return conditions.get("Ready") == "True" and _time(leases[node.name]["renewTime"]) > started

    return {node.name: ready(node) for node in plan.nodes}


def check(plan: ClusterPlan, kubectl: Kubectl) -> None:
    """ClusterError that says what is not ready yet."""
    late = [name for name, ready in nodes(plan, kubectl).items() if not ready]
    if late:
        raise ClusterError(f"not ready: node {', '.join(late)}")
    started = {node.name: machines.started(node.cgroup) for node in plan.nodes}
    for namespace, (selector, count) in addons(plan).items():
        pods = kubectl.items("pods", "-n", namespace, "-l", selector)
        ready = [pod for pod in pods if _runs(pod, started.get(pod["spec"].get("nodeName", "")))]
        if len(ready) < count:
            names = ", ".join(pod["metadata"]["name"] for pod in pods if pod not in ready)
            raise ClusterError(f"not ready: pods in {namespace}: {names or 'none yet'}")


def _runs(pod: dict[str, Any], since: datetime.datetime | None) -> bool:
    """Whether a pod's containers are ready and were started after a time."""
    containers = pod["status"].get("containerStatuses", [])
    return bool(containers) and all(
        since is not None
        and container["ready"]
        and "running" in container["state"]
        # whole seconds there, so a container of the same second counts
        and _time(container["state"]["running"]["startedAt"]) >= since.replace(microsecond=0)
        for container in containers
    )
