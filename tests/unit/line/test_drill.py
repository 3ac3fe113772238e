"""What a drill plans, how long its load lasts, and how it reads what became of a container."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_type_hints

import httpx
import pytest

from levada.cli.drill import drill
from levada.line import drill as module
from levada.line import faults
from levada.line.drill import Drill, Gate, Ledger, Plan, Result
from levada.line.faults import ANYWHERE, KINDS, Victim, signalled
from levada.line.install import ROOT
from levada.line.target import LineError, Target
from levada.pipeline import parse_pipeline

FIELDS = {"writer": {"type": "string"}, "number": {"type": "long"}, "note": {"type": "string"}}
PIPELINE = parse_pipeline({"key": "writer", "fields": FIELDS}, "drill")


class Line:
    """What a fault asks of a target; the pod's statuses come one after another, the last one for ever."""

    cluster: Any = None
    namespace = "levada"

    def __init__(self, *statuses: dict[str, Any], workloads: tuple[dict[str, Any], ...] = ()) -> None:
        self.statuses, self.workloads = list(statuses), list(workloads)
        self.asked: list[tuple[str, ...]] = []

    def kubectl(self, *words: str, timeout: float = 0) -> str:
        self.asked.append(words)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else (self.statuses or [{}])[0]
        ready = {"type": "Ready", "status": str(status.pop("ready", False))}
        return json.dumps({"status": {"conditions": [ready], "containerStatuses": [{"name": "kafka", **status}]}})

    def secret(self, component: str, key: str) -> str:
        return "secret"

    def name(self, component: str) -> str:
        return f"levada-{component}"

    def url(self, service: str, port: int) -> str:
        return f"http://{service}:{port}"

    def objects(self, kind: str, selector: str) -> list[dict[str, Any]]:
        self.asked.append((kind, selector))
        return self.workloads


def victim(line: Line, **labels: str) -> Victim:
    pod = {"metadata": {"name": "levada-kafka-0", "labels": labels}, "spec": {"containers": [{"name": "kafka"}]}}
    return Victim(cast(Target, line), pod)


def test_the_same_seed_gives_the_same_faults() -> None:
    plan = Plan(events=5000, faults=50, kinds=("kill", "node"), components=("sink", "kafka"), seed=3)
    faults = plan.schedule()
    assert faults == plan.schedule() == sorted(faults)
    assert faults != Plan(5000, 50, plan.kinds, plan.components, seed=4).schedule()
    assert {kind for _, kind, _ in faults} == {"kill", "node"}
    assert {component for _, _, component in faults} == {"sink", "kafka"}
    assert 0 <= faults[0][0] <= faults[-1][0] < plan.total


def test_a_load_lasts_as_long_as_its_fault() -> None:
    gate = Gate(first=2000, last=10_000, since=100.0)
    assert [gate.allowed(100.0 + seconds) for seconds in (0, 10, 20, 30)] == [2000, 6000, 8000, 9000]
    assert gate.allowed(160.0) < gate.allowed(170.0) < 10_000
    assert Gate(first=2000, last=1500, since=100.0).allowed(130.0) == 2000
    assert Gate(first=2000, since=100.0).allowed(130.0) == 2000


def test_only_a_whole_and_ordered_result_is_good(tmp_path: Path) -> None:
    def result(**found: int) -> Result:
        audit = {"rows": 1000, "events": 1000, "missing": 0, "repeated": 0, "disordered": 0} | found
        ledger = Ledger(tmp_path / "ledger", acknowledged=audit.pop("acknowledged", 1000))
        return Result(Plan(events=1000, faults=0), ledger, faults=cast(Any, {}), audit=audit, seconds=1)

    assert result().good
    assert not result(acknowledged=999).good
    for wrong in ({"missing": 1}, {"repeated": 1}, {"disordered": 1}, {"rows": 999}, {"rows": 1001}):
        assert not result(**wrong).good


def test_every_kind_is_in_the_help_and_in_the_how_to() -> None:
    text = get_type_hints(drill, include_extras=True)["kind"].__metadata__[0].help
    kinds = text.partition(";")[0].replace(" or ", ", ").split(", ")
    assert sorted(kinds) == sorted(KINDS)
    page = (ROOT / "docs" / "how-to" / "drills.md").read_text()
    assert all(f"`{kind}`" in page for kind in KINDS)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(ANYWHERE)))
def test_a_kube_context_takes_no_fault_of_machines(kind: str, tmp_path: Path) -> None:
    with pytest.raises(LineError, match=f"{kind} needs this machine's own cluster; .* kill, restart"):
        Drill(cast(Target, Line()), PIPELINE, Plan(1, 1, ("kill", kind)), tmp_path / "ledger", print)


def test_only_what_has_a_disk_can_have_a_full_one(tmp_path: Path) -> None:
    line = Line(workloads=({"kind": "Deployment", "spec": {}},))
    line.cluster = object()
    with pytest.raises(LineError, match="sink has no disk that could be full: say --on kafka"):
        Drill(cast(Target, line), PIPELINE, Plan(1, 1, ("kill", "disk"), ("sink",)), tmp_path / "ledger", print)
    assert line.asked == [("deployments,statefulsets", "app.kubernetes.io/component=sink")]


def test_a_component_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(LineError, match="there is no snik to break: levada status shows what there is"):
        Drill(cast(Target, Line()), PIPELINE, Plan(1, 1, components=("snik",)), tmp_path / "ledger", print)


def test_a_ledger_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(LineError, match="No such file or directory: name another file with --ledger"):
        Drill(cast(Target, Line()), PIPELINE, Plan(1, 0), tmp_path / "none" / "ledger", print)


def test_an_event_is_acknowledged_at_any_attempt_and_not_sent_again(tmp_path: Path) -> None:
    """Else a retry would mend the loss of one that a 207 acknowledged, and the drill would count none."""
    refused = {"status": 503, "detail": "Kafka does not take the event now"}
    answers: list[Any] = [
        httpx.Response(503),
        httpx.Response(207, json={"receipts": [_receipt(1, 7), {"line": 2, **refused}, _receipt(3, 8)]}),
        httpx.ReadError("broken"),
        httpx.Response(202, json={"receipts": [_receipt(2, None)]}),
    ]
    bodies: list[bytes] = []

    def collector(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(httpx.Response, answer)

    made = Drill(cast(Target, Line()), PIPELINE, Plan(3, 0, lines=3), tmp_path / "ledger", print)
    with httpx.Client(transport=httpx.MockTransport(collector)) as client:
        made._send(client, "/v1/drill/events", "k", ["a", "b", "c"])
    assert bodies == [b"a\nb\nc", b"a\nb\nc", b"\nb\n", b"\nb\n"]
    assert (made._ledger.acknowledged, made._ledger.ends) == (3, {0: 9})
    assert made._ledger.answers == {"503": 1, "207": 1, "ReadError": 1, "202": 1}
    entries = [json.loads(text) for text in (tmp_path / "ledger").read_text().splitlines()]
    assert [entry["acknowledged"] for entry in entries] == [[], [[1, 0, 7], [3, 0, 8]], [], [[2, 0, None]]]


@pytest.mark.parametrize(
    ("receipts", "message"),
    [
        ([{"line": 1, "status": 422, "detail": "no"}, {"line": 2, "status": 503}], "an event of a drill was refused"),
        ([{"line": 1, "status": 202, "partition": 0, "offset": 1}], "2 lines were answered with receipts for others"),
    ],
)
def test_an_answer_that_no_drill_expects_ends_it(receipts: list[Any], message: str, tmp_path: Path) -> None:
    made = Drill(cast(Target, Line()), PIPELINE, Plan(2, 0, lines=2), tmp_path / "ledger", print)
    transport = httpx.MockTransport(lambda _: httpx.Response(207, json={"receipts": receipts}))
    with httpx.Client(transport=transport) as client, pytest.raises(LineError, match=message):
        made._send(client, "/v1/drill/events", "k", ["a", "b"])


def test_a_client_that_fails_ends_the_drill_though_all_clients_are_through(tmp_path: Path) -> None:
    made = Drill(cast(Target, Line()), PIPELINE, Plan(1, 0), tmp_path / "ledger", print)
    made._errors.append(LineError("batch b was answered 418"))
    with pytest.raises(LineError, match=r"the drill's client failed: .*answered 418"):
        made._wait(lambda: True)


def _receipt(line: int, offset: int | None) -> dict[str, Any]:
    return {"line": line, "status": 202, "event_id": f"k-{line}", "partition": 0, "offset": offset}


def test_processes_that_are_never_found_end_the_drill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACK_SECONDS", 0.3)
    made = Drill(cast(Target, Line()), PIPELINE, Plan(1, 0), tmp_path / "ledger", print)
    cluster = Line()
    cluster.cluster = SimpleNamespace(faults=SimpleNamespace(processes=lambda *_: {}))
    running = {"name": "kafka", "state": {"running": {}}}
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [running]}, "status": {"containerStatuses": [running]}}
    cluster.workloads = [pod]
    made._target = cast(Target, cluster)
    with pytest.raises(LineError, match="no process of kafka is found on this machine"):
        made._victim("kafka", pod)


def test_with_a_kube_context_a_pod_is_deleted_without_grace() -> None:
    line = Line()
    assert KINDS["kill"](victim(line), random.Random(1)) == "levada-kafka-0 deleted without grace"
    assert line.asked[0][:4] == ("delete", "pod", "levada-kafka-0", "--grace-period=0")


def test_every_workload_of_the_pods_component_and_pipeline_is_restarted() -> None:
    line = Line(workloads=tuple({"kind": "Deployment", "metadata": {"name": name}} for name in ("sink-a", "sink1-a")))
    labels = {"app.kubernetes.io/component": "sink", "levada.io/pipeline": "a", "levada.io/sink": "1"}
    KINDS["restart"](victim(line, **labels), random.Random(1))
    names = ("deployment/sink-a", "deployment/sink1-a")
    assert line.asked[0] == ("deployments,statefulsets", "app.kubernetes.io/component=sink,levada.io/pipeline=a")
    assert line.asked[1] == ("rollout", "restart", *names)
    assert [words[:3] for words in line.asked[2:]] == [("rollout", "status", name) for name in names]


def test_the_end_of_one_container_is_told_and_not_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    runs = {"running": {}}
    before = {"terminated": {"containerID": "a", "reason": "Error"}}
    mine = {"terminated": {"containerID": "b", "reason": "OOMKilled"}}
    for line in (
        Line({"state": runs, "lastState": before}, {"state": mine, "lastState": before}),
        Line({"state": runs, "lastState": before}, {"state": {"waiting": {}}, "lastState": mine}),
    ):
        assert victim(line).ending("b")["reason"] == "OOMKilled"
        assert len(line.asked) == 2


def test_a_pod_is_back_when_it_is_ready_with_another_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    line = Line(
        {"containerID": "a", "ready": True},
        {"containerID": "b", "ready": False},
        {"containerID": "b", "ready": True},
    )
    assert victim(line).back("a") == "b"
    assert len(line.asked) == 3


def test_what_does_not_come_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_BACK_SECONDS", 0)
    with pytest.raises(LineError, match="levada-kafka-0 goes on after 0 s"):
        victim(Line({"state": {}})).ending("a")


def test_a_signal_is_followed_by_its_opposite() -> None:
    def state() -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def becomes(wanted: str) -> bool:
        deadline = time.monotonic() + 5
        while state() != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        return state() == wanted

    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(KeyError), signalled([process.pid], signal.SIGSTOP, signal.SIGCONT):  # noqa: PT012
                assert becomes("T")
                raise KeyError
            assert becomes("S")
        finally:
            process.kill()
