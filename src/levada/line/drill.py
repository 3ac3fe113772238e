"""Send numbered events, break things meanwhile, and count what came out.

Every answer goes into a ledger, with the events that it acknowledged. Those of a batch that were not are sent again
under the same idempotency key, as a client should, until they are. One that was acknowledged is never sent again, so
no retry can mend its loss; in the end the table must hold every event once and each writer's events in their order.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from levada.cluster import ClusterError
from levada.line.demo import lake_state
from levada.line.faults import ANYWHERE, KINDS, Victim
from levada.line.target import LineError, Target
from levada.pipeline import Pipeline

FIELDS: Final = {"writer": "string", "number": "long", "note": "string"}
"""Fields that the drill's pipeline must declare, as examples/drill/values.yaml does."""
_NOTE: Final = "x" * 100
_HALF_SECONDS: Final = 10.0
_BACK_SECONDS: Final = 300.0
_DRAIN_SECONDS: Final = 600.0
_ATTEMPT_SECONDS: Final = 30.0


@dataclass
class Ledger:
    """How what was sent was answered, one line an answer in a file.

    Args:
        path: the file, which may be there already; the lines go to its end.

    Raises:
        LineError: it cannot be written.
    """

    path: Path
    answers: Counter[str] = field(default_factory=Counter)
    """Answer (status, or the class of a broken connection) → batches so answered; one batch may count many times."""
    acknowledged: int = 0
    """Events acknowledged, each once."""
    ends: dict[int, int] = field(default_factory=dict)
    """Partition → offset after the last acknowledged event."""
    longest: float = 0.0
    """Longest time in seconds that one batch took from its first attempt to its last answer."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        try:
            self.path.open("a").close()
        except OSError as error:
            raise LineError(f"{self.path}: {error.strerror}: name another file with --ledger") from error

    def note(self, key: str, answer: str, seconds: float, receipts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Enter one answer to a batch.

        Args:
            key: the batch's idempotency key.
            answer: its status, or the class of a broken connection.
            seconds: since the first attempt of the batch.
            receipts: of the events that are acknowledged by it.
        """
        places = [[receipt["line"], receipt["partition"], receipt["offset"]] for receipt in receipts]
        entry = {"key": key, "answer": answer, "seconds": round(seconds, 3), "acknowledged": places}
        with self._lock:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            self.answers[answer] += 1
            self.acknowledged += len(places)
            self.longest = max(self.longest, seconds)
            for _, partition, offset in places:
                if offset is not None:
                    self.ends[partition] = max(self.ends.get(partition, 0), offset + 1)


@dataclass(frozen=True)
class Plan:
    """What a drill does. The seed decides what is broken and when; the same seed gives the same plan."""

    events: int
    faults: int
    kinds: tuple[str, ...] = ("kill",)
    components: tuple[str, ...] = ("sink", "collector", "kafka")
    seed: int = 1
    connections: int = 4
    lines: int = 250
    """Events in a batch."""
    writers: int = 50
    """Writers of a connection, who take turns in its batches; a divisor of the lines."""

    @property
    def batches(self) -> int:
        """Batches of each connection; the last one is not cut short, so there may be a few events more."""
        return -(-self.events // (self.connections * self.lines))

    @property
    def total(self) -> int:
        """Events that are sent."""
        return self.connections * self.batches * self.lines

    def schedule(self) -> list[tuple[int, str, str]]:
        """(events acknowledged before it, kind, component) of every fault, in order."""
        chance = random.Random(self.seed)  # noqa: S311
        return sorted(
            (chance.randrange(self.total), chance.choice(self.kinds), chance.choice(self.components))
            for _ in range(self.faults)
        )


@dataclass(frozen=True)
class Gate:
    """How many events may be acknowledged by now: faults are to meet a load, not its end.

    Before a fault they are `first`. While it lasts, half of what is left up to `last` goes every ten seconds, so that
    there is a load however long it takes.
    """

    first: int
    last: int = 0
    since: float = field(default_factory=time.monotonic)

    def allowed(self, now: float) -> int:
        """Events, at a time of the monotonic clock."""
        return self.first + int(max(self.last - self.first, 0) * (1 - 0.5 ** ((now - self.since) / _HALF_SECONDS)))


@dataclass
class Result:
    """What a drill saw."""

    plan: Plan
    ledger: Ledger
    faults: Counter[str]
    """Fault → how often it was done."""
    audit: dict[str, Any]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether every event is acknowledged, and there once and in order."""
        found, total = self.audit, self.plan.total
        whole = self.ledger.acknowledged == found["rows"] == total
        return whole and not (found["missing"] or found["repeated"] or found["disordered"])

    def render(self) -> str:
        """The ledger in a few lines of at most 80 columns."""
        plan, found = self.plan, self.audit
        writers = plan.connections * plan.writers
        answers = ", ".join(f"{count} × {answer}" for answer, count in self.ledger.answers.most_common())
        faults = ", ".join(f"{count} × {fault}" for fault, count in sorted(self.faults.items())) or "none"
        return "\n".join(
            [
                f"Drill with seed {plan.seed}: {plan.total} events by {writers} writers in {self.seconds:.0f} s",
                f"  faults        {faults}",
                f"  answers       {answers}",
                f"  acknowledged  {self.ledger.acknowledged} events; longest wait {self.ledger.longest:.1f} s",
                f"  in the lake   {found['rows']} rows, {found['events']} event ids",
                f"  lost {found['missing']}, doubled {found['repeated']}, out of order {found['disordered']}",
                f"  ledger        {self.ledger.path}",
            ]
        )


class Drill:
    """One drill on an installed line."""

    def __init__(
        self, target: Target, pipeline: Pipeline, plan: Plan, ledger: Path, say: Callable[[str], None]
    ) -> None:
        if pipeline.types != FIELDS or pipeline.key != "writer":
            raise LineError(
                f"pipeline {pipeline.name} does not take the drill's events: install the line with "
                "--values examples/drill/values.yaml and drill the pipeline `drill`"
            )
        if target.cluster is None and (refused := [kind for kind in plan.kinds if kind not in ANYWHERE]):
            raise LineError(
                f"{refused[0]} needs this machine's own cluster; a kube context takes {', '.join(ANYWHERE)}"
            )
        for component in plan.components if plan.faults else ():
            found = target.objects("deployments,statefulsets", f"app.kubernetes.io/component={component}")
            if not found:
                raise LineError(f"there is no {component} to break: levada status shows what there is")
            if "disk" in plan.kinds and not any(each["spec"].get("volumeClaimTemplates") for each in found):
                raise LineError(f"{component} has no disk that could be full: say --on kafka with --kind disk")
        self._target, self._pipeline, self._plan, self._say = target, pipeline, plan, say
        self._chance = random.Random(plan.seed)  # noqa: S311
        self._prefix = f"drill-{uuid.uuid4().hex[:8]}-"
        self._ledger = Ledger(ledger)
        self._key = target.secret("api-key", "key")
        self._stop = threading.Event()
        self._gate = Gate(0)
        self._errors: list[BaseException] = []

    def run(self) -> Result:
        """Send all events while the faults are done, wait for the lake, count.

        Raises:
            LineError: the line did not come back, or the lake did not catch up.
        """
        plan, done = self._plan, Counter[str]()
        begin = time.monotonic()
        senders = [threading.Thread(target=self._send_all, args=(c,), daemon=True) for c in range(plan.connections)]
        for thread in senders:
            thread.start()
        try:
            faults = plan.schedule()
            for number, (after, kind, component) in enumerate(faults, start=1):
                pod = self._running(component)
                self._gate = Gate(after + 2 * plan.connections * plan.lines)
                self._wait(partial(self._reached, after))
                self._gate = Gate(self._gate.first, faults[number][0] if number < len(faults) else plan.total)
                what = KINDS[kind](self._victim(component, pod), self._chance)
                done[f"{kind} {component}"] += 1
                self._say(f"{self._ledger.acknowledged:>9} events, fault {number} of {plan.faults}: {what}")
            self._gate = Gate(plan.total)
            self._wait(lambda: not any(thread.is_alive() for thread in senders))
        finally:
            self._stop.set()
        self._drain()
        return Result(plan, self._ledger, done, self._audit(), time.monotonic() - begin)

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait while events flow; an outage of minutes on end is an error of the line."""
        seen, since = self._ledger.acknowledged, time.monotonic()
        while True:
            met = condition()
            if self._errors:  # which may be why it is met
                raise LineError(f"the drill's client failed: {self._errors[0]!r}") from self._errors[0]
            if met:
                return
            if self._ledger.acknowledged != seen:
                seen, since = self._ledger.acknowledged, time.monotonic()
            elif time.monotonic() - since > _BACK_SECONDS:
                raise LineError(f"no event was acknowledged for {_BACK_SECONDS:.0f} s")
            time.sleep(0.05)

    def _reached(self, events: int) -> bool:
        return self._ledger.acknowledged >= events

    def _send_all(self, connection: int) -> None:
        plan = self._plan
        url = f"/v1/{self._pipeline.name}/events"
        try:
            with httpx.Client(timeout=_ATTEMPT_SECONDS) as client:
                for batch in range(plan.batches):
                    while self._reached(self._gate.allowed(time.monotonic())) and not self._stop.wait(0.02):
                        pass
                    turns = plan.lines // plan.writers
                    events = [
                        {
                            "writer": f"{self._prefix}{connection}-{writer}",
                            "number": batch * turns + turn,
                            "note": _NOTE,
                        }
                        for turn in range(turns)
                        for writer in range(plan.writers)
                    ]
                    self._send(client, url, f"{self._prefix}c{connection}-b{batch}", list(map(json.dumps, events)))
        except BaseException as error:
            self._errors.append(error)

    def _send(self, client: httpx.Client, path: str, key: str, events: Sequence[str]) -> None:
        """Send the events of one batch until each is acknowledged, and from then on not again."""
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/x-ndjson",
            "Idempotency-Key": key,
        }
        lines = list(events)
        begin = time.monotonic()
        while any(lines) and not self._stop.is_set():
            pause = 0.1
            try:
                url = self._target.url(self._target.name("collector"), 8080)
                # An empty line stands where one is acknowledged: an event's id follows from the number of its line.
                answer = client.post(url + path, content="\n".join(lines).encode(), headers=headers)
            except (httpx.TransportError, LineError) as error:
                self._ledger.note(key, type(error).__name__, time.monotonic() - begin)
            else:
                if answer.status_code not in (202, 207, 429, 502, 503):
                    raise LineError(f"batch {key} was answered {answer.status_code}: {answer.text[:300]}")
                acknowledged = _acknowledged(answer, lines)
                self._ledger.note(key, str(answer.status_code), time.monotonic() - begin, acknowledged)
                for receipt in acknowledged:
                    lines[receipt["line"] - 1] = ""
                pause = min(float(answer.headers.get("Retry-After", pause)), 2.0)
            if any(lines):
                self._stop.wait(pause)

    def _victim(self, component: str, pod: dict[str, Any]) -> Victim:
        """A pod, or what has taken its place, with its processes if they are on this machine."""
        deadline = time.monotonic() + _BACK_SECONDS
        while not (pids := self._pids(pod)) and self._target.cluster is not None:
            if time.monotonic() > deadline:
                raise LineError(f"no process of {component} is found on this machine: see levada cluster status")
            time.sleep(0.1)
            pod = self._running(component)
        return Victim(self._target, pod, pids)

    def _running(self, component: str) -> dict[str, Any]:
        """A pod of the component whose first container runs; waits for one."""
        selector = f"app.kubernetes.io/component={component}"
        if component in ("sink", "predictor"):
            selector += f",levada.io/pipeline={self._pipeline.name}"
        found: list[dict[str, Any]] = []

        def there() -> bool:
            with suppress(LineError):
                found[:] = [
                    pod
                    for pod in self._target.objects("pods", selector)
                    if "deletionTimestamp" not in pod["metadata"]
                    and any(
                        status["name"] == pod["spec"]["containers"][0]["name"] and "running" in status["state"]
                        for status in pod["status"].get("containerStatuses", [])
                    )
                ]
            return bool(found)

        deadline = time.monotonic() + _BACK_SECONDS
        while not there():
            if time.monotonic() > deadline:
                raise LineError(f"no pod of {component} runs: see levada status")
            time.sleep(0.5)
        return self._chance.choice(found)

    def _pids(self, pod: dict[str, Any]) -> list[int]:
        """Processes, on this machine, of a pod's first container; none while it does not run, or elsewhere."""
        running: dict[str, list[int]] = {}
        if self._target.cluster is not None:
            with suppress(ClusterError):  # the pod may be gone
                running = self._target.cluster.faults.processes(self._target.namespace, pod["metadata"]["name"])
        return running.get(pod["spec"]["containers"][0]["name"], [])

    def _drain(self) -> None:
        """Wait until the sinks have committed everything that was acknowledged."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        behind = dict(self._ledger.ends)
        while behind:
            if time.monotonic() > deadline:
                raise LineError(f"not in the lake after {_DRAIN_SECONDS:.0f} s: partition → offset {behind}")
            time.sleep(1)
            with suppress(LineError):
                committed, _ = lake_state(self._target, self._pipeline.name)
                behind = {p: end for p, end in self._ledger.ends.items() if committed.get(p, 0) < end}

    def _audit(self) -> dict[str, Any]:
        """Have a sink's pod count, since it is what can read the lake."""
        plan = self._plan
        shape = [f"--{name}={getattr(plan, name)}" for name in ("connections", "batches", "lines", "writers")]
        name = self._running("sink")["metadata"]["name"]
        found: dict[str, Any] = json.loads(
            self._target.kubectl(
                "exec", name, "--container", "sink", "--", "levada", "audit", self._prefix, *shape, timeout=600
            )
        )
        return found


def _acknowledged(answer: httpx.Response, lines: Sequence[str]) -> list[dict[str, Any]]:
    """The receipts of the lines that an answer acknowledges.

    Raises:
        LineError: a line that was sent has no receipt, or is refused for good.
    """
    if answer.status_code not in (202, 207):
        return []
    receipts = answer.json()["receipts"]
    sent = [number for number, line in enumerate(lines, start=1) if line]
    if [receipt["line"] for receipt in receipts] != sent:
        raise LineError(f"{len(sent)} lines were answered with receipts for others: {answer.text[:300]}")
    for receipt in receipts:
        if receipt["status"] not in (202, 429, 503):
            raise LineError(f"an event of a drill was refused: {receipt}")
    return [receipt for receipt in receipts if receipt["status"] == 202]
