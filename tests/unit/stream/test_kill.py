"""A sink's process is killed again and again at random moments: each event is one row, in its place."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import defaultdict

import pytest
from prometheus_client import REGISTRY

from levada import lake
from levada.stream import sink as sink_module
from levada.stream.letters import Letters
from levada.stream.sink import Sink

from .process import carry
from .rig import SMALL, Rig

KILLS = int(os.environ.get("LEVADA_KILLS", "30"))
EACH = 150


def rows_in(rig: Rig) -> int:
    catalog = rig.catalog()
    if not catalog.table_exists(rig.pipeline.table):
        return 0
    snapshot = catalog.load_table(rig.pipeline.table).current_snapshot()
    return 0 if snapshot is None else int(snapshot.summary.additional_properties["total-records"])


@pytest.mark.row(12)
@pytest.mark.row(18, process=True, part="30 kills by default")
@pytest.mark.row(19, process=True)
@pytest.mark.timeout(400)
def test_killed_at_random_moments(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = int(os.environ.get("LEVADA_SEED", time.time_ns() % 10**6))
    print(f"LEVADA_SEED={seed}")
    dice = random.Random(seed)
    rig.declare({**SMALL, "key": "n"})
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["tests.unit.stream.process"])
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sent: set[str] = set()
    bad: set[str] = set()
    ends: dict[int, int] = defaultdict(int)
    committed: list[int] = []
    for kill in range(KILLS):
        events = []
        for number in range(EACH):
            event_id, partition = f"{kill}-{number}", number % 4
            if number % 50 == 7:
                events.append((b"{", event_id, stamp, partition))
                bad.add(event_id)
                continue
            if number % 50 == 9:  # a client's retry, of an event from some time ago
                event_id = f"{dice.randrange(kill + 1)}-{9 if partition == 1 else 4}"
                partition = 1 if event_id.endswith("-9") else 0
            events.append((b'{"n":%d}' % (kill * EACH + number), event_id, stamp, partition))
            sent.add(event_id)
        for _, _, _, partition in events:
            ends[partition] += 1
        rig.send_many(events)
        process = start.Process(target=carry, args=(rig._bootstrap, str(rig.folder), rig.pipeline.name), daemon=True)
        process.start()
        if kill % 5 == 0:  # how long one takes here and now, from its start to its first rows
            begin, before = time.monotonic(), rows_in(rig)
            while rows_in(rig) == before and time.monotonic() - begin < 30:
                time.sleep(0.02)
            usual = time.monotonic() - begin
        else:
            time.sleep(usual * dice.uniform(0.3, 1.6))
        process.kill()
        process.join(10)
        committed.append(rows_in(rig))
    assert len(set(committed)) > KILLS / 4, f"most kills came before the first commit: {committed}"
    # What piled up is drained once it may run, and the lag is zero.
    monkeypatch.setattr(lake, "catalog", lambda _: rig.catalog())
    monkeypatch.setattr(sink_module, "_IDLE_SECONDS", 0.1)
    stop = threading.Event()
    last = threading.Thread(target=Sink(rig.settings, rig.pipeline).run, args=[stop])
    last.start()
    labels = [{"pipeline": rig.pipeline.name, "partition": str(partition)} for partition in ends]
    deadline = time.monotonic() + 60
    try:
        while [REGISTRY.get_sample_value("levada_sink_committed_offset", label) for label in labels] != [
            *ends.values()
        ]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while [REGISTRY.get_sample_value("levada_sink_lag", label) for label in labels] != [0] * len(labels):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        stop.set()
        last.join(30)
    rows = rig.rows()
    print(f"{KILLS} kills, {sum(ends.values())} messages, {len(sent)} events, {len(rows)} rows, {len(bad)} letters")
    assert rig.ids() == dict.fromkeys(sent, 1)
    for partition in ends:  # in the order in which they were sent
        numbers = [row["n"] for row in rows if row["_partition"] == partition]
        assert numbers == sorted(numbers)
    assert rig.settings.kafka is not None
    letters, _ = Letters(rig.settings.kafka, rig.pipeline).newest(10_000)
    assert {letter.event_id for letter in letters} == bad
