"""Kills under load, counted: every acknowledged event is in the lake once, in the order of its key."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import httpx
import pytest

from levada.line import faults
from levada.line.drill import Plan
from levada.line.faults import Victim, signalled
from levada.line.target import ready_pods
from tests.unit.examples.orders.visitor import Visitor

from ..conftest import Line, wait_for
from .conftest import drill, levada, settled

EVENT = {"writer": "w", "number": 1, "note": "by hand"}


def processes(line: Line, component: str, but_one: bool = False) -> list[int]:
    """Processes, on this machine, of every container of a component's pods, or of all its pods but one."""
    assert line.target.cluster is not None
    faults = line.target.cluster.faults
    pods = line.target.objects("pods", f"app.kubernetes.io/component={component}")
    return [
        pid
        for pod in pods[int(but_one) :]
        for pids in faults.processes(line.target.namespace, pod["metadata"]["name"]).values()
        for pid in pids
    ]


def resident(line: Line, component: str) -> int:
    """Bytes resident of the largest process of a component."""
    sizes = []
    for pid in processes(line, component):
        status = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
        sizes.append(int(status["VmRSS"].split()[0]) * 1024)
    return max(sizes)


def post(line: Line, key: str, client: httpx.Client | None = None, timeout: float = 10) -> httpx.Response:
    return (client or httpx).post(
        f"{line.collector_url}/v1/drill/events",
        json=EVENT,
        headers={"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": key},
        timeout=timeout,
    )


@pytest.mark.row(7)
@pytest.mark.row(10)
@pytest.mark.row(12)
@pytest.mark.row(19)
def test_twenty_kills(line: Line, tmp_path: Path) -> None:
    result = drill(line, Plan(events=50_000, faults=20, seed=20), tmp_path)
    assert result.good
    assert result.ledger.acknowledged == result.plan.total


@pytest.mark.row(12, part="processes that stand still")
def test_pauses(line: Line, tmp_path: Path) -> None:
    assert drill(line, Plan(events=20_000, faults=6, kinds=("pause",), seed=21), tmp_path).good


@pytest.mark.row(19, part="catalog and object store")
def test_stores_are_killed_and_stand_still(line: Line, tmp_path: Path) -> None:
    plan = Plan(events=20_000, faults=4, kinds=("kill", "pause"), components=("postgres", "s3"), seed=22)
    assert drill(line, plan, tmp_path).good


@pytest.mark.row(8)
@pytest.mark.row(10)
def test_a_broker_that_lost_its_disk_joins_again(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk(pod: str) -> str:
        return line.kubectl("get", "pvc", f"data-{pod}", "-o", "jsonpath={.metadata.uid}")

    lost: list[tuple[str, str]] = []

    def lose_a_disk(victim: Victim, chance: Random) -> str:
        lost.append((victim.name, disk(victim.name)))
        line.kubectl("delete", "pvc", f"data-{victim.name}", "--wait=false")
        told = faults.kill(victim, chance)
        line.kubectl("delete", "pod", victim.name, "--grace-period=0", "--force", "--wait=false")
        return f"{told}, and its disk is lost"

    monkeypatch.setitem(faults.KINDS, "lost disk", lose_a_disk)
    plan = Plan(events=60_000, faults=1, kinds=("lost disk",), components=("kafka",), seed=1)
    result = drill(line, plan, tmp_path)
    assert result.good
    assert set(result.ledger.answers) > {"202"}  # the broker that was killed led some of the partitions
    assert result.ledger.longest <= 10  # seconds until answers went on, with the batch's own time
    wait_for(lambda: ready_pods(line.target.objects("pods", "app.kubernetes.io/component=kafka")) == 3, 120)
    [(pod, before)] = lost
    assert disk(pod) != before


@pytest.mark.row(7)
def test_no_broker_answers(line: Line) -> None:
    # Every collector has had an acknowledgement: the first one of a new client is waited for longer.
    assert all(post(line, "before").status_code == 202 for _ in range(10))
    before = resident(line, "collector")
    with signalled(processes(line, "kafka"), signal.SIGSTOP, signal.SIGCONT):
        stop = time.monotonic() + 20
        refusals: list[float] = []
        floor: list[float] = []

        def client(number: int) -> None:
            with httpx.Client() as connection:
                while time.monotonic() < stop:
                    answer = post(line, f"away-{number}", connection)
                    refusals.append(answer.elapsed.total_seconds())
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["Retry-After"]) >= 1
                    time.sleep(0.2)

        def idle(_: int) -> None:
            with httpx.Client() as connection:
                while time.monotonic() < stop:
                    floor.append(connection.get(f"{line.collector_url}/livez").elapsed.total_seconds())
                    time.sleep(0.05)

        with ThreadPoolExecutor(17) as pool:
            for done in [pool.submit(idle, 0), *(pool.submit(client, number) for number in range(16))]:
                done.result()
        grown = resident(line, "collector") - before
    healed = time.monotonic()
    wait_for(lambda: post(line, "after").status_code == 202, 30)
    back = time.monotonic() - healed
    print(
        f"{len(refusals)} times 503 after at most {max(refusals):.2f} s (an answer without work {max(floor):.2f} s), "
        f"collector {grown / 2**20:+.0f} MiB, answers {back:.1f} s after the heal"
    )
    # As a client sees it: the collector needs 0.85 s of it at most, and the way to it and back has the rest.
    assert max(refusals) <= 1
    assert grown <= 64 * 2**20
    assert back <= 5


@pytest.mark.row(1, part="the order page on three brokers")
@pytest.mark.row(7)
def test_an_order_that_one_of_three_brokers_has_is_not_placed(line: Line) -> None:
    rows = settled(line, "orders")
    visitor = Visitor(line.target.url(line.target.name("orders"), 8080))
    visitor.get()
    order = {"name": "Grace Hopper", "user_id": f"g{uuid.uuid4()}", "password": "1906", "product": "iu_ticket"}
    with signalled(processes(line, "kafka", but_one=True), signal.SIGSTOP, signal.SIGCONT):
        answer = visitor.post(order)
        assert answer.status_code == 503
        assert "not confirmed" in answer.text
    wait_for(lambda: visitor.post(order).status_code == 303, 60)
    visitor.close()
    wait_for(lambda: line.rows("orders") == rows + 1, 60)
    assert settled(line, "orders") == rows + 1


@pytest.mark.row(5)
def test_one_event_posted_fifty_times_is_one_row(line: Line) -> None:
    rows, key = settled(line), f"fifty-{uuid.uuid4()}"
    killed, kills = threading.Event(), 4

    def kill() -> None:
        for _ in range(kills):
            time.sleep(2)
            wait_for(lambda: processes(line, "collector"), 60)
            os.kill(processes(line, "collector")[0], signal.SIGKILL)
        killed.set()

    def client(_: int) -> Counter[str]:
        answers: Counter[str] = Counter()
        while not killed.is_set() or answers["202"] < 7:
            try:
                answers[str(post(line, key, timeout=5).status_code)] += 1
            except httpx.TransportError as error:
                answers[type(error).__name__] += 1
            time.sleep(0.1)
        return answers

    with ThreadPoolExecutor(9) as pool:
        killer = pool.submit(kill)
        answers = sum(pool.map(client, range(8)), Counter[str]())
        killer.result()
    print(f"{kills} kills, answers {dict(answers)}")
    assert answers["202"] >= 50
    assert set(answers) > {"202"}  # the kills met requests
    assert settled(line) == rows + 1


def test_the_command_of_operators(line: Line, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.ndjson"
    told = levada(
        line, "drill", "--events", "4000", "--faults", "2", "--on", "sink", "--seed", "7", "--ledger", str(ledger)
    )
    assert "lost 0, doubled 0, out of order 0" in told
    entries = [json.loads(text) for text in ledger.read_text().splitlines()]
    acknowledged = [(entry["key"], line) for entry in entries for line, _, _ in entry["acknowledged"]]
    assert len(acknowledged) == len(set(acknowledged)) == 4000
