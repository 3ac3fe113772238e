"""A container's memory that is taken; the cluster around it is made up, its first process is real."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from levada.cluster import ClusterError, Silent, cgroups, faults, machines, shell
from levada.cluster.faults import Faults
from levada.cluster.plan import ClusterPlan

POD = {
    "metadata": {"name": "p", "namespace": "n"},
    "spec": {"nodeName": "a-1"},
    "status": {"containerStatuses": [{"name": "c", "containerID": "containerd://id", "state": {"running": {}}}]},
}


@pytest.fixture
def victim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    def helper(*_: Any, **__: Any) -> str:
        raise ClusterError("the helper was killed")

    with subprocess.Popen(["sleep", "60"]) as process:
        monkeypatch.setattr(machines, "of_container", lambda *_: [process.pid] if process.poll() is None else [])
        monkeypatch.setattr(cgroups, "find", lambda *_: iter(["group"]))
        monkeypatch.setattr(cgroups, "memory", lambda _: tmp_path)
        monkeypatch.setattr(cgroups, "memory_limit", lambda _: 1 << 20)
        monkeypatch.setattr(faults, "run", helper)
        monkeypatch.setattr(faults, "until", lambda attempt, _: shell.until(attempt, 2))
        try:
            yield process
        finally:
            process.kill()


def exhaust() -> None:
    Faults(ClusterPlan("a"), cast(Any, lambda *_: json.dumps(POD)), Silent()).exhaust("n", "p", "c")


def test_the_helper_may_die_with_a_victim_that_is_slow_to_end(victim: subprocess.Popen[bytes]) -> None:
    timer = threading.Timer(0.5, victim.kill)
    timer.start()
    exhaust()
    timer.join()
    assert victim.wait(5) == -9


def test_a_victim_that_lives_on_is_an_error(victim: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ClusterError, match="the helper was killed"):
        exhaust()
    assert Path(f"/proc/{victim.pid}/oom_score_adj").read_text() == "1000\n"
