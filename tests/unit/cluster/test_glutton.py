"""What takes a container's memory, run as a plain process on a plain file: without root there is no group to enter."""

from __future__ import annotations

import subprocess
from pathlib import Path

from levada.cluster.faults import GLUTTON
from levada.cluster.machines import python


def glutton(group: Path, victim: int, limit: int) -> subprocess.Popen[str]:
    return subprocess.Popen([*python(GLUTTON), str(group), str(victim), str(limit)], stderr=subprocess.PIPE, text=True)


def test_it_ends_with_its_victim(tmp_path: Path) -> None:
    group = tmp_path / "cgroup.procs"
    with subprocess.Popen(["sleep", "60"]) as victim:
        with glutton(group, victim.pid, 1 << 40) as hungry:
            try:
                while not group.exists() and hungry.poll() is None:
                    pass
                victim.kill()
                assert hungry.wait(10) == 0
            finally:
                hungry.kill()
        victim.wait()
    assert group.read_text() == "0"  # itself


def test_it_takes_no_more_than_the_limit(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            with glutton(tmp_path / "cgroup.procs", victim.pid, 8 << 20) as hungry:
                _, told = hungry.communicate(timeout=10)
        finally:
            victim.kill()
    assert hungry.returncode == 1
    assert told == f"process {victim.pid} lives on, 9 MiB later\n"
