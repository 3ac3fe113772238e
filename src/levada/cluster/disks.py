"""Small disks: a volume with little room left, to see what becomes of a program whose disk is full.

A volume is a folder on this machine's own disk, which is never filled. Its data moves into a file system in memory, of
the size that is wanted, mounted over the folder where only the node sees it. The mount ends with the node's power,
and the node then has lost that disk: the folder below is empty, so that no program ever finds data of an earlier day.
Whatever has the volume open is killed at each move, and finds its data as after any kill.
"""

import contextlib
import errno
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from levada.cluster import cgroups, machines
from levada.cluster.errors import ClusterError
from levada.cluster.plan import NodePlan
from levada.cluster.shell import run

MOST = 1 << 30
FILLER = ".filler"
DEVICE, ROOT, PLACE = 2, 3, 4  # columns of /proc/…/mountinfo


def small(node: NodePlan) -> list[Path]:
    """Volumes of a node that are on small disks now."""
    first = machines.init(node.cgroup)
    return [] if first is None else parse(Path(f"/proc/{first}/mountinfo").read_text(), node.directory / "volumes")


def parse(mounts: str, volumes: Path) -> list[Path]:
    """What is mounted below a folder, by a text in the format of /proc/…/mountinfo."""
    # listed twice, since the node's folder is a mount of its own and shared
    places = {Path(line.split()[PLACE]) for line in mounts.splitlines()}
    return sorted(place for place in places if place.parent == volumes)


def shrink(node: NodePlan, volume: Path, room: int) -> None:
    """Move a volume to a disk with `room` bytes left.

    Raises:
        ClusterError: the node is off, the volume is on a small disk already, or holds more than fits into memory.
    """
    first = _first(node)
    if volume in small(node):
        raise ClusterError(f"volume {volume.name} is on a small disk already")
    with _standing_still(node):
        used = int(run(["du", "--summarize", "--block-size=1", volume]).split()[0])
        if used > MOST:
            raise ClusterError(f"volume {volume.name} holds {used >> 20} MiB; a small disk takes {MOST >> 20} MiB")
        own = volume.stat()
        options = f"size={used + room},mode={stat.S_IMODE(own.st_mode):o},uid={own.st_uid},gid={own.st_gid}"
        _as_node(first, "mount", "-t", "tmpfs", "-o", options, "small", volume)
        try:
            run(["cp", "--archive", f"{volume}/.", _inside(first, volume)])
        except ClusterError:
            _as_node(first, "umount", volume)
            raise
        _kill_holders(node, first, ROOT, volume.name)
        for path in volume.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def fill(node: NodePlan, volume: Path) -> None:
    """Take all the room of a small disk; ClusterError if the volume is not on one."""
    if volume not in small(node):
        raise ClusterError(f"volume {volume.name} is on no small disk, and this machine's own is never filled")
    with (_inside(_first(node), volume) / FILLER).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def widen(node: NodePlan, volume: Path) -> None:
    """Move a volume from a small disk back to this machine's own."""
    first = _first(node)
    inside, copy = _inside(first, volume), volume.with_name(f"{volume.name}.copy")
    with _standing_still(node):
        (inside / FILLER).unlink(missing_ok=True)
        shutil.rmtree(copy, ignore_errors=True)  # of a move that was killed
        run(["cp", "--archive", inside, copy])
        device = inside.stat().st_dev
        _as_node(first, "umount", volume)
        volume.rmdir()
        copy.rename(volume)
        _kill_holders(node, first, DEVICE, f"{os.major(device)}:{os.minor(device)}")


def _first(node: NodePlan) -> int:
    first = machines.init(node.cgroup)
    if first is None:
        raise ClusterError(f"node {node.name} is off")
    return first


def _inside(first: int, path: Path) -> Path:
    """A folder as the node sees it, small disks included; by its own path it is seen without them."""
    return Path(f"/proc/{first}/root{path}")


def _as_node(first: int, *words: str | Path) -> None:
    run(["nsenter", f"--mount=/proc/{first}/ns/mnt", *words])


@contextmanager
def _standing_still(node: NodePlan) -> Iterator[None]:
    """Nothing of a node runs: nobody writes to what is moved, or opens it halfway."""
    try:
        cgroups.freeze(node.cgroup)
        yield
    finally:
        cgroups.thaw(node.cgroup)


def _kill_holders(node: NodePlan, first: int, column: int, wanted: str) -> None:
    """Kill the processes of a node's pods that have something mounted; the node's own programs are none of them."""
    own = Path(f"/proc/{first}/ns/mnt").readlink()
    for pid in cgroups.processes(node.cgroup):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
            held = any(wanted in line.split()[column].split("/") for line in mounts)
            if held and Path(f"/proc/{pid}/ns/mnt").readlink() != own:
                os.kill(pid, signal.SIGKILL)
