"""The clock of a sink's machine is set forward and back while it runs: each event is one row, none is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyiceberg.exceptions import NoSuchTableError

from tests.clock import Clock

from .rig import SMALL, Rig

ROOT = Path(__file__).parents[3]
HOURS = 2 * 3600
EACH = 30  # fewer than the process reads at once: what waits for more must not wait for hours
COMMAND = "import sys; from tests.unit.stream.process import carry; carry(*sys.argv[1:])"
LISTEN = """
import sys
from levada.config import KafkaSettings
from levada.pipeline import parse_pipeline
from levada.stream.source import Source
source = Source(KafkaSettings(bootstrap=sys.argv[1], protocol="PLAINTEXT"),
                parse_pipeline({"fields": {"n": {"type": "long"}}}, sys.argv[2]))
source.read_from({0: 0})
print("listens", flush=True)
for _ in range(20):
    assert source.poll(10, 0.2) == []
"""


@pytest.fixture
def clock(rig: Rig, tmp_path: Path) -> Iterator[Clock]:
    """The clock of a sink's process that runs."""
    clock = Clock(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, rig._bootstrap, str(rig.folder), rig.pipeline.name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **clock.environment},
        stdout=subprocess.DEVNULL,
    )
    yield clock
    process.kill()
    process.wait()


def send(rig: Rig, ids: list[str]) -> None:
    """Events with the right time, from a machine whose clock is right; an id has a number of its own."""
    now = datetime.now(UTC).isoformat()
    rig.send_many((b'{"n":%d}' % int(each), each, now, int(each) % 4) for each in ids)


def wait_for(rig: Rig, ids: set[str]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if rig.ids().keys() >= ids:
                return
        except NoSuchTableError:
            pass
        assert time.monotonic() < deadline, "no rows for 20 s"
        time.sleep(0.02)


def test_a_wait_for_events_ends_though_the_clock_goes_back(rig: Rig, tmp_path: Path) -> None:
    """Else what was read and is not committed would wait for the next event."""
    clock = Clock(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, rig._bootstrap, rig.pipeline.name],
        env={**os.environ, **clock.environment},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        time.sleep(1.3)  # in the midst of a wait
        clock.set(-HOURS)
        try:
            assert process.wait(10) == 0
        finally:
            process.kill()


@pytest.mark.row(18, process=True, part="the clock is set")
@pytest.mark.timeout(180)
def test_the_clock_is_set_while_a_sink_runs(rig: Rig, clock: Clock) -> None:
    rig.declare({**SMALL, "key": "n"})  # whose window of ids is an hour
    began = datetime.now(UTC)
    sent: list[str] = []
    for ahead in (0, HOURS, 0, -HOURS, HOURS, 0):
        clock.set(ahead)
        time.sleep(1)  # the sink waits for events when its clock is set, and goes on waiting
        new = [str(len(sent) + number) for number in range(EACH)]
        send(rig, new)
        wait_for(rig, set(new))
        send(rig, sent)  # everything before, once more
        sent += new
    # More commits than snapshots may be kept, while the clock is behind them.
    clock.set(-HOURS)
    for _ in range(45):
        sent.append(str(len(sent)))
        send(rig, [sent[-1]])
        wait_for(rig, {sent[-1]})
    assert rig.ids() == dict.fromkeys(sent, 1)
    assert rig.letters() == []
    table = rig.catalog().load_table(rig.pipeline.table)
    assert len(table.metadata.snapshots) < 40
    stamps = [entry.timestamp_ms for entry in table.metadata.snapshot_log]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= table.metadata.last_updated_ms
    # A row's own time is its event's; when it was taken in is what the sink's clock said.
    rows = rig.rows()
    assert all(began - timedelta(seconds=1) < row["_event_time"] < began + timedelta(minutes=3) for row in rows)
    off = {round((row["_ingested_at"] - row["_event_time"]) / timedelta(hours=1)) for row in rows}
    assert off == {0, 2, -2}
