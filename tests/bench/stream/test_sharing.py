"""What it costs that sinks share one topic and one table.

Method: the broker of test_sink.py; sinks as processes that all have their partitions before they start
together. Three of them on one core beside one alone there: what they take together, as CPU time. Two, each on a core of
its own, beside one: what they carry in a second; the broker needs one of these cores too. Every row must be in the
table once, and no sink may have been fenced. Table and catalog are on this disk, the catalog in SQLite.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from . import peers
from .broker import fill, machine
from .conftest import EVENTS as HALF

ROUNDS = int(os.environ.get("LEVADA_BENCH_ROUNDS", "3"))
EVENTS = 2 * HALF  # three sinks have to commit more than once each
TOPIC = "shared"
_SECONDS = 400.0


def _sinks(bootstrap: str, cores: list[int]) -> tuple[float, float, int]:
    """CPU microseconds an event, events a second, and repeated commits, of a sink on each of these cores."""
    with tempfile.TemporaryDirectory(prefix="levada-bench-") as folder:
        peers.make_tables(Path(folder), TOPIC, places=True)
        sinks = [
            subprocess.Popen(
                ["taskset", "--cpu-list", str(core), sys.executable, "-m", "tests.bench.stream.sharing",
                 bootstrap, TOPIC, folder, str(index), str(len(cores))],
                cwd=peers.ROOT, env={**os.environ, "PYTHONPATH": f"{peers.ROOT}/src:{peers.ROOT}"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for index, core in enumerate(cores)
        ]  # fmt: skip
        try:
            for sink in sinks:
                assert sink.stdout is not None
                while (line := sink.stdout.readline()) != "ready\n":
                    assert line, "a sink ended before it was ready"
            for sink in sinks:
                assert sink.stdin is not None
                sink.stdin.write("go\n")
                sink.stdin.flush()
            said = [sink.communicate(timeout=_SECONDS)[0] for sink in sinks]
            assert [sink.returncode for sink in sinks] == [0] * len(sinks), "a sink was fenced or failed"
        finally:
            for sink in sinks:
                sink.kill()
                sink.communicate()
        found = [json.loads(each.strip().splitlines()[-1]) for each in said]
        assert sum(each["events"] for each in found) == EVENTS
        assert peers.rows(Path(folder), TOPIC) == peers.distinct(Path(folder), TOPIC, "_event_id") == EVENTS
    cpu, wall = sum(each["cpu"] for each in found), max(each["wall"] for each in found)
    return cpu / EVENTS * 1e6, EVENTS / wall, int(sum(each["conflicts"] for each in found))


def test_what_sharing_costs(bootstrap: str) -> None:
    fill(bootstrap, TOPIC, EVENTS)
    here, there = peers.CORE, peers.OTHER_CORE
    ways = {"one": [here], "three, one core": [here] * 3, "two, two cores": [here, there]}
    found: dict[str, list[tuple[float, float, int]]] = {way: [] for way in ways}
    print(f"\n{machine()}")
    for _ in range(ROUNDS):
        for way, cores in ways.items():
            found[way].append(_sinks(bootstrap, cores))
    costs = {way: statistics.median(cost for cost, _, _ in each) for way, each in found.items()}
    rates = {way: statistics.median(rate for _, rate, _ in each) for way, each in found.items()}
    print(f"Sinks on one topic and table, {EVENTS} events, each row there once, {ROUNDS} rounds, median (min to max):")
    for way, rounds in found.items():
        spent = [cost for cost, _, _ in rounds]
        print(
            f"  {way:<16} {costs[way]:6.2f} µs/event ({min(spent):.2f} to {max(spent):.2f})  {rates[way]:8.0f} events/s"
            f"  {sum(conflicts for _, _, conflicts in rounds)} commits repeated"
        )
    print(f"  three / one by CPU = {costs['three, one core'] / costs['one']:.2f}")
    print(f"  two on two cores / one by CPU = {costs['two, two cores'] / costs['one']:.2f}")
    print(f"  two on two cores / one by rate = {rates['two, two cores'] / rates['one']:.2f}")
    print(f"  {machine()}")
