"""Control groups, version 1 and 2: where each process of a cluster is put, counted and found again.

A process cannot leave its group by dying parents or new namespaces, so the group is the list of what is to be
stopped. Paths are relative to the root of every hierarchy, like `levada.<cluster>/node1/system`.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from levada.cluster.errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
FREEZE = {True: "cgroup.freeze", False: "freezer.state"}  # by whether the machine is unified


def unified() -> bool:
    """Whether this machine uses cgroup v2 alone."""
    return (ROOT / "cgroup.controllers").exists()


def _mounted(*types: str) -> list[Path]:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(place) for _, place, kind, *_ in mounts if kind in types and Path(place).is_relative_to(ROOT)]


def _hierarchies() -> list[Path]:
    """Where groups are made: on a version 1 machine the unified hierarchy beside it has no controllers."""
    if unified():
        return [ROOT]
    found = _mounted("cgroup")
    if not any("pids" in path.name.split(",") for path in found):
        raise ClusterError("no cgroup controllers are mounted under /sys/fs/cgroup: mount them, or boot with systemd")
    return found


def _hierarchy(controller: str) -> Path:
    """Where a controller's groups are; containers have one of their own in each hierarchy in either version."""
    return next(path for path in _hierarchies() if unified() or controller in path.name.split(","))


def create(path: str) -> None:
    """Make a group and its parents in every hierarchy."""
    for hierarchy in _hierarchies():
        folder = hierarchy
        for part in path.split("/"):
            if unified():
                for controller in (folder / "cgroup.controllers").read_text().split():
                    with contextlib.suppress(OSError):  # one the kernel does not delegate is missing, not fatal
                        (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            if not unified() and "cpuset" in hierarchy.name.split(","):
                # a new cpuset is empty and takes no process until it is filled
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if not (folder / file).read_text().strip():
                        (folder / file).write_text((parent / file).read_text())


def enter(path: str) -> None:
    """Move the calling process into a group that exists."""
    for hierarchy in _hierarchies():
        (hierarchy / path / "cgroup.procs").write_text("0")


def processes(path: str) -> Iterator[int]:
    """Process ids, as this namespace sees them, of a group and all groups below it."""
    top = _hierarchy("pids") / path
    for folder, _, _ in os.walk(top):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield from (int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split() if pid != "0")


def find(path: str, name: str) -> Iterator[str]:
    """Groups of a name somewhere below a group."""
    top = _hierarchy("pids")
    for folder, names, _ in os.walk(top / path):
        if name in names:
            yield str((Path(folder) / name).relative_to(top))


def kill(path: str, *, timeout: float = 30) -> None:
    """Kill every process of a group, frozen ones too, and wait until it is empty."""
    deadline = time.monotonic() + timeout
    while pids := list(processes(path)):
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {pids} of cgroup {path} do not die: look at them with ps, then try again")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        thaw(path)  # in version 1 a frozen process does not even die; it dies before it runs another instruction
        time.sleep(0.05)


def freeze(path: str, *, timeout: float = 10) -> None:
    """Have every process of a group and of all groups below it stand still until `thaw`; ClusterError if one does not.

    Nobody is told, unlike with SIGSTOP: no parent sees it, and nothing but `thaw` or `kill` undoes it.
    """
    folder = _hierarchy("freezer") / path
    if not folder.exists():
        return
    (folder / FREEZE[unified()]).write_text("1" if unified() else "FROZEN")
    deadline = time.monotonic() + timeout
    while not _still(folder):
        if time.monotonic() > deadline:
            raise ClusterError(f"cgroup {path} does not stand still: a process waits for the disk, try again")
        time.sleep(0.01)


def thaw(path: str) -> None:
    """Let every process of a group and of all groups below it go on."""
    for folder, _, _ in os.walk(_hierarchy("freezer") / path):
        with contextlib.suppress(FileNotFoundError):
            (Path(folder) / FREEZE[unified()]).write_text("0" if unified() else "THAWED")


def frozen(path: str) -> bool:
    """Whether a group was told to stand still."""
    file = _hierarchy("freezer") / path / FREEZE[unified()]
    return file.exists() and file.read_text().strip() not in ("0", "THAWED")


def memory(path: str) -> Path:
    """Folder of a group whose files limit and count its memory."""
    return _hierarchy("memory") / path


def memory_limit(path: str) -> int | None:
    """Bytes of memory that a group may have; None if that is not limited."""
    text = (memory(path) / ("memory.max" if unified() else "memory.limit_in_bytes")).read_text().strip()
    # version 1 says the largest number of bytes in whole pages
    return None if text == "max" or int(text) >= 1 << 62 else int(text)


def _still(folder: Path) -> bool:
    if unified():
        return "frozen 1" in (folder / "cgroup.events").read_text().splitlines()
    return (folder / FREEZE[False]).read_text().strip() == "FROZEN"


def remove(path: str) -> None:
    """Remove an empty group and all groups below it, in every hierarchy: runc makes its own in all that there are."""
    for hierarchy in _mounted("cgroup", "cgroup2"):
        for folder, _, _ in os.walk(hierarchy / path, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                Path(folder).rmdir()
