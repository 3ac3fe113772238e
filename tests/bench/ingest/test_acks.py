"""What acks 0, 1 and all cost and lose, on three real brokers, throttled, unthrottled, and with a broker killed.

Method: three brokers with the chart's settings and one producer with the collector's (lz4, linger 5 ms, a queue of
32 MiB; idempotent where acks=all allows it), all on this machine's cores as they come; 100,000 numbered records of
1,000 bytes that do not compress, to a new topic of 3 partitions, 3 replicas, min.insync.replicas 2; the first run of
each acks, and the first 5,000 records of each run, are warm-up and counted nowhere. Latency is from when a record was
due to its delivery report. The killed broker leads a partition, gets SIGKILL when half of the records are sent, and
comes back before the topic is read. Lost: reported as delivered, and not in the topic.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

from tests.cluster.ingest.acks import ACKS, Run, run
from tests.cluster.ingest.brokers import AS_DEPLOYED, Brokers, running

RECORDS = 100_000
LOADS: dict[str, tuple[float | None, bool, int]] = {
    "10,000/s": (10_000, False, 5),
    "unthrottled": (None, False, 5),
    "broker dies": (None, True, 3),
}
"""Rate, whether a broker is killed, runs."""
EARLIER = {"0": (61.4, 472), "1": (119, 710), "all": (411, 1319)}
"""The earlier system's average and p99 in ms at 10,000/s, medians of its 5 runs."""


@pytest.fixture
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    folder = tmp_path_factory.mktemp("kafka")
    yield from running(folder, {"ingest": {"kafka": {"replicas": 3}}}, jvm=AS_DEPLOYED)


def line(acks: str, load: str, runs: list[Run]) -> str:
    """The medians of some runs, or one run's own figures; losses are added up."""
    rate = statistics.median(each.rate for each in runs)
    waits = [statistics.median(each.mean for each in runs)]
    waits += [statistics.median(each.wait(part) for each in runs) for part in (0.5, 0.95, 0.99, 1)]
    counts = [sum(each.failed for each in runs), sum(each.lost for each in runs), sum(each.twice for each in runs)]
    return (
        f"{acks:<5}{load:<12}{rate:>8.0f}"
        + "".join(f"{wait:>7.{0 if wait >= 1000 else 1}f}" for wait in waits)
        + "".join(f"{count:>7}" for count in counts)
    )


@pytest.mark.row(11, process=True)
def test_what_acks_cost_and_lose(kafka: Brokers) -> None:
    for acks in ACKS:
        run(kafka, acks, RECORDS)
    head = f"\n{'acks':<5}{'load':<12}{'rec/s':>8}" + "".join(
        f"{name:>7}" for name in ("avg ms", "p50", "p95", "p99", "max", "failed", "lost", "twice")
    )
    print(head)
    runs: dict[tuple[str, str], list[Run]] = {}
    for load, (rate, kill, times) in LOADS.items():
        for _ in range(times):
            for acks in ACKS:
                found = run(kafka, acks, RECORDS, rate, kill=kill)
                runs.setdefault((acks, load), []).append(found)
                print(line(acks, load, [found]), flush=True)
    print(f"\nMedians of the runs, sums of the losses:{head}")
    for (acks, load), each in runs.items():
        print(line(acks, load, each))
    free, fast = (statistics.median(each.rate for each in runs[acks, "unthrottled"]) for acks in ("all", "1"))
    print(f"\nunthrottled, acks=all / acks=1 by rate: {free / fast:.2f}")
    print("At 10,000/s beside the earlier system, which was another machine with a\ntopic of unknown replication:")
    for acks, (mean, p99) in EARLIER.items():
        here = runs[acks, "10,000/s"]
        own = statistics.median(each.mean for each in here), statistics.median(each.wait(0.99) for each in here)
        print(
            f"acks={acks:<4} avg {own[0]:.1f} to {mean} ms ({own[0] / mean:.2f}), "
            f"p99 {own[1]:.1f} to {p99} ms ({own[1] / p99:.2f})"
        )
    for (acks, _), each in runs.items():
        if acks == "all":
            assert {(one.failed, one.lost, one.twice) for one in each} == {(0, 0, 0)}
