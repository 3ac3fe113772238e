"""Images in a node's containerd, where the kubelet looks for them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from levada.cluster.archive import ImageArchive
from levada.cluster.errors import ClusterError
from levada.cluster.plan import NodePlan
from levada.cluster.shell import run, succeeds

DEFAULT_DOMAIN = "docker.io"  # containerd's own completion of a name without one; nothing is ever fetched from it


def ctr(node: NodePlan, *words: str) -> list[str]:
    """Words that run a command of a node's containerd."""
    return ["ctr", "--address", str(node.socket), "--namespace", "k8s.io", *words]


def wait(node: NodePlan, *, timeout: float = 30) -> None:
    """Wait until the node's containerd answers."""
    deadline = time.monotonic() + timeout
    while not succeeds(ctr(node, "version")):
        if time.monotonic() > deadline:
            raise ClusterError(f"containerd of {node.name} does not answer: see {node.directory}/logs/containerd.log")
        time.sleep(0.1)


def images(node: NodePlan) -> set[str]:
    """Full names of the images that a node has."""
    return set(run(ctr(node, "images", "list", "--quiet")).split())


def load(node: NodePlan, archive: ImageArchive, *options: str, path: Path | None = None) -> None:
    """Import an archive, or what another file has of it, under the name that pods pin."""
    naming = ("--base-name", f"{DEFAULT_DOMAIN}/{archive.name}", "--digests")
    run(ctr(node, "images", "import", *naming, *options, str(path or archive.path)), timeout=900)


def import_images(
    node: NodePlan, archives: Sequence[ImageArchive], bring: Callable[[NodePlan, ImageArchive], None] = load
) -> list[str]:
    """Bring in the archives that a node lacks; the names that were brought in.

    Each image gets two names, for pods that write name:tag and for pods that pin name:tag@digest: the kubelet's
    runtime looks either up as it stands.
    """
    present = images(node)
    imported = []
    for archive in archives:
        repository = f"{DEFAULT_DOMAIN}/{archive.name}"
        pinned, tagged = f"{repository}@{archive.digest}", f"{repository}:{archive.tag}"
        if pinned not in present:
            bring(node, archive)
            if pinned not in images(node):
                raise ClusterError(f"{archive.path} does not hold {archive.name} with digest {archive.digest}")
        if pinned not in present or tagged not in present:
            run(ctr(node, "images", "tag", "--force", pinned, tagged))
            imported.append(f"{archive.name}:{archive.tag}")
    return imported
