"""A cluster that is up, for those who use it."""

from collections.abc import Sequence
from pathlib import Path

from levada.cluster import lifecycle, sharing
from levada.cluster.archive import ImageArchive
from levada.cluster.binaries import MODULES, Binaries
from levada.cluster.errors import ClusterError
from levada.cluster.faults import Faults
from levada.cluster.forwarding import Forwarding
from levada.cluster.progress import Progress, Silent
from levada.cluster.shell import Kubectl
from levada.cluster.status import Status, status


class Cluster:
    """A cluster by name; ClusterError if `up` was not run for it."""

    def __init__(self, name: str, progress: Progress | None = None) -> None:
        plan = lifecycle.find(name)
        if plan is None:
            raise ClusterError(f"there is no cluster {name} on this machine. Run: levada cluster up --name {name}")
        self.plan = plan
        self._progress = progress or Silent()
        self._binaries = Binaries(self._progress)

    @property
    def name(self) -> str:
        """Name of the cluster, of its kubeconfig's context and the first part of its nodes' names."""
        return self.plan.name

    @property
    def state(self) -> Path:
        """Folder of everything it keeps; goes with the cluster."""
        return self.plan.directory

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of an administrator, for use from this machine."""
        return self.plan.kubeconfig

    @property
    def kubectl(self) -> Kubectl:
        """kubectl of the cluster's own version."""
        return Kubectl(self.binary("kubectl"), self.kubeconfig)

    def binary(self, name: str) -> Path:
        """Path of a program of the cluster's making: kubectl, helm, helm3 …; compiled if it has to be."""
        if name in MODULES and len(MODULES[name].programs) == 1:
            return self._binaries.program(name, MODULES[name].programs[0])
        for module in MODULES.values():
            if name in module.programs:
                return self._binaries.program(module.name, name)
        raise ClusterError(f"no module of the cluster makes a program {name!r}")

    def forward(self, namespace: str, service: str, port: int, preferred: int | None = None) -> int:
        """Port on 127.0.0.1 that leads to a Service from now on, whatever happens to its pods.

        The same port each time it is asked for; `preferred`, else the Service's own, if it is free at first.
        """
        forwarding = Forwarding(self.plan)
        known = forwarding.served(namespace, service, port)
        if known is not None:
            return known
        wanted = "jsonpath={.spec.clusterIP} {.spec.ports[*].port}"
        found = self.kubectl("get", "service", service, "--namespace", namespace, "--output", wanted)
        address, *ports = found.split()
        if address == "None":
            raise ClusterError(f"Service {namespace}/{service} is headless: forward to the one that has a cluster IP")
        if str(port) not in ports:
            raise ClusterError(f"Service {namespace}/{service} has no port {port}, it has {', '.join(ports)}")
        return forwarding.forward(namespace, service, port, preferred)

    @property
    def faults(self) -> Faults:
        """What can be done to its nodes in a drill."""
        return Faults(self.plan, self.kubectl, self._progress)

    def status(self) -> Status:
        """What of it runs just now."""
        return status(self.plan, self.kubectl)

    def import_images(self, images: Sequence[ImageArchive]) -> list[str]:
        """Give every node the images it lacks; name:tag of each one that some node lacked."""
        return sharing.import_images(self.plan.nodes, images)


def up(name: str, progress: Progress, *, node_count: int | None = None) -> Cluster:
    """Have a cluster run, and come back when it can be used: with one node, or as many as it has, if none are said."""
    lifecycle.up(name, progress, node_count=node_count)
    return Cluster(name, progress)
