"""Images that several nodes have, on the disk once: the first node unpacks them, the others take them by hard links.

Only files that containerd never changes are shared: the layers as they are in the archives (blobs), and what they
unpack to. What a container writes goes to a layer of its own. So three nodes take hardly longer than one, and a
program that runs on all of them is in memory once.
"""

import contextlib
import fcntl
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from levada.cluster import containerd
from levada.cluster.archive import ImageArchive
from levada.cluster.errors import ClusterError
from levada.cluster.plan import NodePlan
from levada.cluster.shell import run

BLOBS = Path("containerd/io.containerd.content.v1.content/blobs/sha256")


def import_images(nodes: Sequence[NodePlan], archives: Sequence[ImageArchive]) -> list[str]:
    """Give nodes the images they lack; name:tag of each one that some node lacked."""
    first, *others = nodes
    imported = containerd.import_images(first, archives)
    if others:
        with ThreadPoolExecutor(len(others)) as pool:
            imported += [
                name for names in pool.map(lambda node: _take(first, node, archives), others) for name in names
            ]
    return sorted(set(imported))


def _take(giver: NodePlan, taker: NodePlan, archives: Sequence[ImageArchive]) -> list[str]:
    with _alone(taker):
        return containerd.import_images(taker, archives, lambda _, archive: _take_image(giver, taker, archive))


@contextmanager
def _alone(node: NodePlan) -> Iterator[None]:
    """One process at a time brings images into a node this way."""
    with (node.directory / "sharing.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _take_image(giver: NodePlan, taker: NodePlan, archive: ImageArchive) -> None:
    # The image comes first: what it names, containerd does not collect as nobody's.
    with tempfile.TemporaryDirectory(dir=taker.directory) as scratch:
        head, layers = behead(archive.path)
        path = Path(scratch) / "head.tar"
        path.write_bytes(head)
        containerd.load(taker, archive, "--no-unpack", path=path)
        for digest, size in layers.items():
            _take_blob(giver, taker, digest, size, Path(scratch) / "link")
    parents, present = (committed(_snapshots(node, "list")) for node in (giver, taker))
    for layer in order(parents):
        if layer not in present:
            _take_layer(giver, taker, layer, parents[layer])
    _snapshots(taker, "unpack", archive.digest)  # finds all of it done, and says so to the image


def behead(archive: Path) -> tuple[bytes, dict[str, int]]:
    """An image without its layers as an archive of its own, and what is left out: digest → bytes."""
    buffer = io.BytesIO()
    with tarfile.open(archive) as whole, tarfile.open(fileobj=buffer, mode="w") as head:

        def take(name: str) -> Any:
            file = whole.extractfile(name)
            if file is None:
                raise ClusterError(f"{archive}: {name} is no file; delete the archive and build it again")
            data = file.read()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            head.addfile(entry, io.BytesIO(data))
            return json.loads(data)

        take("oci-layout")
        manifest = take(_blob(take("index.json")["manifests"][0]["digest"]))
        take(_blob(manifest["config"]["digest"]))
    return buffer.getvalue(), {layer["digest"]: layer["size"] for layer in manifest["layers"]}


def committed(listing: str) -> dict[str, str]:
    """Layers in what `ctr snapshots list` prints, each with the one it lies on, or an empty text."""
    rows = [line.split() for line in listing.splitlines()[1:]]
    return {row[0]: row[1] if len(row) == 3 else "" for row in rows if row[-1] == "Committed"}


def order(parents: Mapping[str, str]) -> list[str]:
    """The layers, each after the one it lies on."""

    def depth(layer: str) -> int:
        return 1 + depth(parents[layer]) if layer else 0

    return sorted(parents, key=depth)


def folder(mounts: Sequence[Mapping[str, Any]]) -> Path:
    """Where the uppermost layer is, from the mounts that containerd tells."""
    options = dict(option.partition("=")[::2] for option in mounts[0]["Options"])
    upper = options.get("upperdir") or options.get("lowerdir", "").split(":")[0]
    return Path(upper or mounts[0]["Source"])


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _take_blob(giver: NodePlan, taker: NodePlan, digest: str, size: int, scratch: Path) -> None:
    source, target = (node.directory / BLOBS / digest.removeprefix("sha256:") for node in (giver, taker))
    if not target.exists():
        os.link(source, target)
    # containerd finds the file at its place and only takes note of it, or has just removed it as nobody's and copies
    expected = ("--expected-digest", digest, "--expected-size", str(size))
    with source.open("rb") as content:
        run(containerd.ctr(taker, "content", "ingest", *expected, digest), stdin=content)
    if not target.samefile(source):
        os.link(source, scratch)
        scratch.rename(target)


def _take_layer(giver: NodePlan, taker: NodePlan, layer: str, parent: str) -> None:
    key = f"levada-sharing-{taker.number}"
    for node in (giver, taker):
        _drop(node, key)  # what a run that was killed left
    source = folder(json.loads(_snapshots(giver, "view", "--mounts", key, layer)))
    target = folder(json.loads(_snapshots(taker, "prepare", "--mounts", key, *([parent] if parent else []))))
    run(["cp", "--archive", "--link", f"{source}/.", target])
    _snapshots(taker, "commit", layer, key)
    _drop(giver, key)


def _drop(node: NodePlan, key: str) -> None:
    with contextlib.suppress(ClusterError):  # it is not there, or containerd has collected it as nobody's
        _snapshots(node, "remove", key)


def _snapshots(node: NodePlan, *words: str) -> str:
    return run(containerd.ctr(node, "snapshots", *words))
