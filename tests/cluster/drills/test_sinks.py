"""Several sinks on one topic and its one table: beside one another, and against one another."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from levada.line import faults
from levada.line.drill import Plan
from levada.line.faults import Victim
from levada.line.target import LineError

from ..conftest import Line, wait_for
from .conftest import drill, sink_metrics

EVENTS = int(os.environ.get("LEVADA_WIDE_EVENTS", "40000"))


@pytest.mark.row(12)
def test_three_sinks_share_a_table(line: Line, tmp_path: Path) -> None:
    before = sink_metrics(line, "wide")
    result = drill(line, Plan(events=EVENTS, faults=0, seed=3), tmp_path, "wide")
    assert result.good
    new = {pod: sums - before[pod] for pod, sums in sink_metrics(line, "wide").items()}
    assert len(new) == 3
    rows = [sums["levada_sink_rows_total"] for sums in new.values()]
    together = sum(new.values(), Counter())
    print(
        f"rows {sorted(rows)}, {together['levada_sink_commits_total']} commits, "
        f"{together['levada_sink_commit_conflicts_total']} times repeated on top of another sink's"
    )
    assert all(rows)
    assert sum(rows) == result.plan.total
    started_over = [
        row
        for pod in new
        for row in line.kubectl("logs", pod, "--container=sink").splitlines()
        if "started over" in row
    ]
    assert not together["levada_sink_fenced_total"] + together["levada_sink_failures_total"], started_over


@pytest.mark.row(22)
def test_two_sinks_on_one_partition(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = "deployment/" + line.target.name("sink-drill")
    fenced: list[str] = []

    def lost() -> bool:
        pods = line.target.objects("pods", "app.kubernetes.io/component=sink,levada.io/pipeline=drill")
        for pod in pods:
            for which in ([], ["--previous"]):
                try:
                    log = line.kubectl("logs", pod["metadata"]["name"], "--container=sink", *which)
                except LineError:  # a container that has not started, or has no predecessor
                    continue
                fenced.extend(row for row in log.splitlines() if "another sink has claimed partition" in row)
        return bool(fenced)

    def second(victim: Victim, _: Random) -> str:
        # A fault of the drill, because a sink notices at its next commit, and events flow while a fault lasts.
        line.kubectl("scale", workload, "--replicas=2")
        try:
            wait_for(lost, 90)
        finally:
            line.kubectl("scale", workload, "--replicas=1")
        return f"a second sink beside {victim.name}"

    monkeypatch.setitem(faults.KINDS, "second", second)
    plan = Plan(events=40_000, faults=1, kinds=("second",), components=("sink",), seed=4)
    assert drill(line, plan, tmp_path).good
    print(fenced[0])
    assert "events.drill" in fenced[0]
