"""Everything that events cross is restarted while they cross it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from levada.line import faults
from levada.line.drill import Plan
from levada.line.faults import Victim
from levada.line.install import write_values

from ..conftest import Line
from .conftest import drill

CHANGED = {
    "ingest": {"kafka": {"config": {"num.replica.fetchers": "2"}}, "collector": {"maxBodyBytes": 2_000_000}},
    "stream": {"sink": {"resources": {"requests": {"cpu": "51m"}}}},
}


def pods(line: Line) -> set[str]:
    """Ids of the pods that events cross."""
    found = line.target.objects("pods", "app.kubernetes.io/component in (kafka,collector,sink)")
    return {pod["metadata"]["uid"] for pod in found}


@pytest.mark.row(12)
def test_components_are_restarted(line: Line, tmp_path: Path) -> None:
    before = pods(line)
    plan = Plan(events=30_000, faults=2, kinds=("restart",), components=("collector", "sink"), seed=9)
    result = drill(line, plan, tmp_path)
    assert set(result.faults) == {"restart collector", "restart sink"}
    assert result.good
    assert len(pods(line) - before) >= 3


@pytest.mark.row(12)
def test_helm_upgrade(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pods(line)

    def upgrade(victim: Victim, chance: Random) -> str:
        line.install(write_values(tmp_path / "changed.yaml", CHANGED))
        return "helm upgrade"

    monkeypatch.setitem(faults.KINDS, "upgrade", upgrade)
    result = drill(line, Plan(events=40_000, faults=1, kinds=("upgrade",), components=("kafka",), seed=4), tmp_path)
    assert result.good
    assert not pods(line) & before
