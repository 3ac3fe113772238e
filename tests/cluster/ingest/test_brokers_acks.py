"""The benchmark of acks on three real brokers, with few records; its figures are made by tests/bench/ingest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .acks import ACKS, run
from .brokers import Brokers, running

RECORDS = 10_000
PART = "with 10,000 records a run"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    yield from running(tmp_path_factory.mktemp("kafka"), {"ingest": {"kafka": {"replicas": 3}}})


@pytest.mark.row(11, process=True, part=PART)
@pytest.mark.parametrize("rate", [5_000, None], ids=["throttled", "unthrottled"])
@pytest.mark.parametrize("acks", ACKS)
def test_each_record_is_reported_and_counted(kafka: Brokers, acks: str, rate: float | None) -> None:
    found = run(kafka, acks, RECORDS, rate)
    assert (found.failed, len(found.waits)) == (0, RECORDS)
    if rate is not None:
        assert found.rate < 1.01 * rate
    if acks == "all":
        assert (found.lost, found.twice) == (0, 0)


@pytest.mark.row(10, process=True)
@pytest.mark.row(11, process=True, part=PART)
def test_acknowledged_by_all_nothing_is_lost_or_doubled_when_a_broker_is_killed(kafka: Brokers) -> None:
    found = run(kafka, "all", RECORDS, 5_000, kill=True)
    assert (found.failed, found.lost, found.twice) == (0, 0, 0)
    assert found.wait(1) > 1000, "nobody noticed that the broker was gone"
