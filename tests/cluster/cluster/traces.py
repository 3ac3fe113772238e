"""What a cluster could leave on its machine."""

from __future__ import annotations

from pathlib import Path

from levada.cluster.plan import STATE


def assert_no_trace(name: str) -> None:
    """Nothing of a cluster is left: no file, control group, namespace, mount or process."""
    assert not (STATE / name).exists()
    assert not list(Path("/sys/fs/cgroup").rglob(f"levada.{name}*"))
    assert not list(Path("/run/netns").glob(f"{name}-*"))
    assert name not in Path("/proc/self/mountinfo").read_text()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert f"/levada.{name}/" not in (process / "cgroup").read_text()
            assert f"clusters/{name}/".encode() not in (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
