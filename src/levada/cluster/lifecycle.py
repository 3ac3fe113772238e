"""Bringing a cluster up, and taking it away."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from levada.cluster import (
    addons,
    cgroups,
    containerd,
    control,
    credentials,
    disks,
    links,
    network,
    node,
    packages,
    readiness,
    sharing,
)
from levada.cluster.binaries import NODE_MODULES, Binaries
from levada.cluster.errors import ClusterError
from levada.cluster.files import write
from levada.cluster.forwarding import Forwarding
from levada.cluster.pki import write_kubeconfig
from levada.cluster.plan import MAX_CLUSTERS, MAX_NODES, STATE, ClusterPlan, NodePlan
from levada.cluster.progress import Progress
from levada.cluster.shell import Kubectl, run, until

SECONDS = 180.0


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a cluster on this machine needs root: run the command again with sudo")


def _state(name: str) -> Path:
    return STATE / name / "cluster.json"


def find(name: str) -> ClusterPlan | None:
    """The plan of a cluster that was made and not taken down, whether it runs or not."""
    _need_root()
    path = _state(name)
    if not path.exists():
        return None
    state = json.loads(path.read_text())
    return ClusterPlan(name, state["index"], state["nodes"])


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Have one command at a time change what a folder stands for: one cluster, or the list of all clusters.

    The lock is on the folder itself: nothing is left behind. A command that waits may find the folder gone.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another command has just removed it
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with progress.phase(f"waiting for another command that is at work on {folder.name}"):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _make(name: str, node_count: int | None) -> ClusterPlan:
    """The cluster's plan; a new cluster gets the lowest index that is free, one that was made may get more nodes."""
    made = find(name)
    if made:
        plan = replace(made, node_count=node_count or made.node_count)
        if plan.node_count < made.node_count:
            raise ClusterError(
                f"cluster {name} has {made.node_count} nodes, and volumes on each: it does not shrink to {node_count}. "
                f"Leave out --nodes, or remove all of it first: levada cluster down --name {name}"
            )
        _remember(plan)
        return plan
    taken = {json.loads(path.read_text())["index"] for path in STATE.glob("*/cluster.json")}
    free = [index for index in range(MAX_CLUSTERS) if index not in taken]
    if not free:
        (STATE / name).rmdir()  # made to be locked
        raise ClusterError(f"there are {MAX_CLUSTERS} clusters on this machine: take one down first")
    plan = ClusterPlan(name, free[0], node_count or 1)
    _remember(plan)
    return plan


def _check(name: str, node_count: int) -> None:
    try:
        ClusterPlan(name, node_count=node_count)
    except ValueError as error:
        raise ClusterError(str(error)) from error


def _remember(plan: ClusterPlan) -> None:
    write(_state(plan.name), json.dumps({"index": plan.index, "nodes": plan.node_count}).encode())


def up(name: str, progress: Progress, *, node_count: int | None = None) -> ClusterPlan:
    """Have a cluster run: build what is missing, start what does not run, undo every fault, leave alone what runs.

    Without a number of nodes a new cluster gets one, and a cluster that was made keeps its own.
    """
    _need_root()
    _check(name, 1 if node_count is None else node_count)
    packages.ensure(packages.CLUSTER, progress)
    programs = Binaries(progress).ensure(*NODE_MODULES)
    with _locked(STATE / name, progress):
        with _locked(STATE, progress):
            plan = _make(name, node_count)
        plan.directory.chmod(0o700)
        issued = credentials.issue(plan)
        kubectl = Kubectl(programs["kubernetes"] / "kubectl", plan.kubeconfig)
        with progress.phase("starting the control plane and the nodes"):
            if not network.has_switch(plan):
                cgroups.kill(plan.cgroup)
                network.create_switch(plan)
            links.mend(plan)
            control.machine(plan, issued, programs).ensure()
            for item in plan.nodes:
                _run_node(plan, item, issued, programs["kubernetes"])
            network.route(plan)
            port = Forwarding(plan).ensure(issued)
            write_kubeconfig(
                plan.kubeconfig,
                name=plan.name,
                server=f"https://{plan.loopback}:{port}",
                authority=issued.authority,
                user=issued.admin,
            )
            _put_images(plan, programs)
        logs = f"see {plan.directory}/control/logs and {plan.directory}/nodes/*/logs"
        with progress.phase("waiting for the API server"):
            _until(lambda: kubectl("get", "--raw", "/readyz", timeout=10), logs)
        with progress.phase("applying the addons"):
            objects = addons.manifests(plan, issued)
            apply = ("apply", "--server-side", "--force-conflicts", "--filename", "-")
            _until(lambda: kubectl(*apply, stdin=objects, timeout=60), logs)
        with progress.phase("waiting for the nodes and the addons"):
            _until(lambda: readiness.check(plan, kubectl), logs)
    return plan


def _run_node(plan: ClusterPlan, item: NodePlan, issued: credentials.Credentials, kubernetes: Path) -> None:
    cgroups.thaw(item.cgroup)
    for volume in disks.small(item):
        disks.widen(item, volume)
    if not network.has_node(plan, item):
        cgroups.kill(item.cgroup)
        network.create_node(plan, item)
    node.machine(plan, item, issued, kubernetes, addons.full_name("pause")).ensure()


def start_node(plan: ClusterPlan, item: NodePlan, progress: Progress) -> None:
    """Have one node of a cluster run, as `up` would; back before the node is ready."""
    kubernetes = Binaries(progress).ensure("kubernetes")["kubernetes"]
    with _locked(plan.directory, progress):
        _run_node(plan, item, credentials.issue(plan), kubernetes)
        network.route(plan)


def _put_images(plan: ClusterPlan, programs: Mapping[str, Path]) -> None:
    """Give every node the images of the addons."""
    for item in plan.nodes:
        containerd.wait(item)
    present = [containerd.images(item) for item in plan.nodes]
    wanted = [name for name in addons.IMAGES if not all(addons.full_name(name) in names for names in present)]
    if wanted:
        with tempfile.TemporaryDirectory(dir=plan.directory) as folder:
            archives = [addons.build(name, programs, Path(folder)) for name in wanted]
            sharing.import_images(plan.nodes, archives)


def _until(attempt: Callable[[], object], hint: str) -> None:
    """Try until it works; the last error after three minutes."""
    try:
        until(attempt, SECONDS)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{hint}") from error


def down(name: str, progress: Progress) -> None:
    """Take a cluster away with all its data, whatever state it is in."""
    _need_root()
    _check(name, MAX_NODES)
    plan = ClusterPlan(name, 0, MAX_NODES)
    with _locked(plan.directory, progress), progress.phase(f"taking down cluster {name}"):
        cgroups.kill(plan.cgroup)  # the mounts of its machines go with their processes
        cgroups.remove(plan.cgroup)
        network.remove(plan)
        run(["rm", "-rf", "--one-file-system", plan.directory], timeout=900)
        with _locked(STATE, progress), contextlib.suppress(OSError):
            STATE.rmdir()  # only if it was the last cluster
            for path in (STATE.parent, node.CNI_STATE, *node.PRIVATE):
                with contextlib.suppress(OSError):  # not there, or with something of somebody else's in it
                    path.rmdir()
