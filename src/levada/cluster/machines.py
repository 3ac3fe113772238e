"""Starting, finding and stopping machines: a machine is process 1 of `machine.py` and all that came of it.

A machine enters a network namespace that lives on without it, and gets new mount and process namespaces that die
with it. Its processes are found by their control group, so nothing depends on files that a kill can leave stale.
"""

import contextlib
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from levada.cluster import cgroups
from levada.cluster.errors import ClusterError

SCRIPT = Path(__file__).parent / "machine.py"
SYSTEM = "system"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    # Kubernetes' clients give up a connection that died without a word after 6 s, not 45: a healed link is used soon.
    "HTTP2_READ_IDLE_TIMEOUT_SECONDS": "3",
    "HTTP2_PING_TIMEOUT_SECONDS": "3",
}


@dataclass(frozen=True)
class Machine:
    """What a machine runs: program name → argument vector, in the order of start; `inputs` are files they read.

    `setup` are commands that come before the programs, such as mounts.
    """

    name: str
    namespace: str
    cgroup: str
    directory: Path
    programs: Mapping[str, Sequence[str | Path]]
    setup: Sequence[Sequence[str | Path]] = ()
    inputs: Sequence[Path] = ()

    @property
    def logs(self) -> Path:
        """Folder of the programs' logs."""
        return self.directory / "logs"

    @property
    def _spec(self) -> Path:
        return self.directory / "machine.json"

    def _content(self) -> str:
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in (SCRIPT, *self.inputs))).hexdigest()
        content = {
            "programs": {name: [str(word) for word in argv] for name, argv in self.programs.items()},
            "setup": [[str(word) for word in argv] for argv in self.setup],
            "logs": str(self.logs),
            "inputs": digest,
        }
        return json.dumps(content, indent=2)

    def running(self) -> bool:
        """Whether its first process lives."""
        return init(self.cgroup) is not None

    def ensure(self) -> bool:
        """Start it if it is not running as described; whether it had to be started."""
        content = self._content()
        if self.running() and self._spec.exists() and self._spec.read_text() == content:
            return False
        self.stop()
        self.logs.mkdir(parents=True, exist_ok=True)
        cgroups.create(f"{self.cgroup}/{SYSTEM}")
        self._spec.write_text(content)
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}"]
        # Mounts of this machine reach the new namespace, its own do not reach back; in it they are shared with pods.
        new = ["unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "--mount-proc"]
        spawn([*enter, *new, *python(SCRIPT), str(self._spec)], self.logs / "machine.log", f"{self.cgroup}/{SYSTEM}")
        deadline = time.monotonic() + 10
        while not self.running():
            if time.monotonic() > deadline:
                raise ClusterError(f"machine {self.name} does not start: see {self.logs / 'machine.log'}")
            time.sleep(0.02)
        return True

    def stop(self, *, grace: float = 20) -> None:
        """End its programs well, then everything else in it at once."""
        first = init(self.cgroup)
        if first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.05)
        cgroups.kill(self.cgroup)


def python(script: Path) -> list[str]:
    """Words that run a script that needs only the standard library, whatever environment this process has."""
    return [os.path.realpath(sys.executable), "-I", str(script)]


def spawn(argv: Sequence[str], log: Path, cgroup: str) -> None:
    """Start a program that is nobody's child and outlives this process, in a control group that exists."""
    with log.open("ab") as output:
        subprocess.run(
            ["setsid", "--fork", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=ENVIRONMENT,
            preexec_fn=lambda: cgroups.enter(cgroup),
            check=True,
        )


def init(cgroup: str) -> int | None:
    """Process id, outside, of a machine's process 1."""
    for pid in cgroups.processes(f"{cgroup}/{SYSTEM}"):
        inner = _status(pid).get("NSpid", "").split()
        if len(inner) > 1 and inner[-1] == "1" and str(SCRIPT).encode() in _command(pid):
            return pid
    return None


def started(cgroup: str) -> datetime.datetime | None:
    """When a machine started, if it runs."""
    pid = init(cgroup)
    return None if pid is None else datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=_age(pid))


@dataclass(frozen=True)
class Running:
    """A program of the cluster that runs: `memory` is the resident size in bytes, `age` in seconds."""

    program: str
    pid: int
    memory: int
    age: float


def describe(program: str, pid: int) -> Running | None:
    """Look at one process; None if it has ended."""
    try:
        return Running(program, pid, int(_status(pid).get("VmRSS", "0 kB").split()[0]) * 1024, _age(pid))
    except (FileNotFoundError, ProcessLookupError):
        return None


def programs(cgroup: str, directory: Path) -> dict[str, Running | None]:
    """Each program of the machine that was started last from a folder, if it runs."""
    spec = directory / "machine.json"
    wanted = json.loads(spec.read_text())["programs"] if spec.exists() else []
    pids = {Path(_command(pid).split(b"\0")[0].decode()).name: pid for pid in cgroups.processes(f"{cgroup}/{SYSTEM}")}
    return {name: describe(name, pids[name]) if name in pids else None for name in wanted}


def of_container(cgroup: str, identity: str) -> list[int]:
    """Processes of a container on a machine, its first one first; empty if it has ended."""
    inner = {
        pid: int(_status(pid).get("NSpid", "0").split()[-1])
        for group in cgroups.find(cgroup, identity)
        for pid in cgroups.processes(group)
    }
    return sorted(inner, key=lambda pid: inner[pid])


def _age(pid: int) -> float:
    """Seconds since a process started."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
