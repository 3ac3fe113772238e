"""Memory and disks that are full, under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from levada.line.drill import Plan

from ..conftest import Line
from .conftest import drill


@pytest.mark.row(10)
@pytest.mark.row(12)
def test_memory_runs_out(line: Line, tmp_path: Path) -> None:
    result = drill(line, Plan(events=30_000, faults=3, kinds=("oom",), seed=12), tmp_path)
    assert set(result.faults) == {"oom collector", "oom kafka", "oom sink"}
    assert result.good
    line.wait_until_ready(180)


@pytest.mark.row(10)
@pytest.mark.row(12)
def test_the_disk_of_a_broker_is_full(line: Line, tmp_path: Path) -> None:
    assert line.target.cluster is not None
    result = drill(line, Plan(events=30_000, faults=1, kinds=("disk",), components=("kafka",), seed=3), tmp_path)
    assert result.good
    assert line.target.cluster.faults.active() == []
    line.wait_until_ready(180)
