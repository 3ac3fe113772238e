"""Nodes that are cut off, one way or both, and nodes that lose their power, under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from levada.line.drill import Plan

from ..conftest import Line
from .conftest import drill

NOTICED = 2.0
"""Seconds: no batch waits so long but for a broker that does not answer."""


@pytest.mark.row(12)
def test_links_are_cut(line: Line, tmp_path: Path) -> None:
    assert line.target.cluster is not None
    kinds = ("cut", "cut-in", "cut-out")
    result = drill(line, Plan(events=30_000, faults=3, kinds=kinds, seed=10), tmp_path)
    assert {fault.split()[0] for fault in result.faults} == set(kinds)
    assert result.good
    assert result.ledger.longest > NOTICED
    assert line.target.cluster.faults.active() == []


@pytest.mark.row(10)
@pytest.mark.row(12)
def test_a_node_loses_its_power(line: Line, tmp_path: Path) -> None:
    assert line.target.cluster is not None
    result = drill(line, Plan(events=30_000, faults=1, kinds=("node",), components=("kafka",), seed=3), tmp_path)
    assert result.good
    assert result.ledger.longest > NOTICED
    assert line.target.cluster.faults.active() == []
    line.wait_until_ready(180)
