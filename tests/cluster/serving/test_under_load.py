"""What a predictor's clients notice of promotions, restarts, lost pods, stores that are away, and a crowd: nothing.

LEVADA_REQUESTS is how many requests each of these takes at least.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from levada.line.install import write_values
from levada.line.target import ready_pods
from tests.cluster.conftest import wait_for
from tests.cluster.drills.conftest import levada
from tests.cluster.serving.custom_metrics import custom_metrics
from tests.cluster.serving.load import Answers, load
from tests.cluster.serving.test_predictor import _HERE, instances, version

if TYPE_CHECKING:
    from tests.cluster.conftest import Line
    from tests.cluster.serving.conftest import InTrainer

pytestmark = pytest.mark.usefixtures("champion")
REQUESTS = int(os.environ.get("LEVADA_REQUESTS", "20000"))
PREDICTOR = "deployment/levada-predictor-iris"
SELECTOR = "app.kubernetes.io/component=predictor,levada.io/pipeline=iris"


@contextmanager
def serving(line: Line, folder: Path, *, in_flight: float = 0, **options: Any) -> Iterator[None]:
    """The line with other ``serving`` options of iris, and ``in_flight`` requests as the autoscaler's target."""
    iris = {"global": {"pipelines": {"iris": {"serving": options}}}}
    values = {**iris, "serving": {"predictor": {"targetInFlight": in_flight}}}
    line.install(write_values(folder / "serving.yaml", values))
    try:
        yield
    finally:
        line.install()


@pytest.fixture(scope="module")
def two(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two predictors."""
    with serving(line, tmp_path_factory.mktemp("values"), replicas=2):
        wait_for(lambda: len(pods(line)) == 2, 120)
        yield


def pods(line: Line) -> list[str]:
    """The predictors that take requests."""
    return [
        pod["metadata"]["name"]
        for pod in line.target.objects("pods", SELECTOR)
        if "deletionTimestamp" not in pod["metadata"] and ready_pods([pod])
    ]


def asked(line: Line, pod: str) -> bool:
    """Whether a predictor has answered predictions."""
    rows = line.target.pod_metrics(pod).splitlines()
    return any(row.startswith("levada_predict_requests_total{") and 'code="200"' in row for row in rows)


@contextmanager
def asking(line: Line, *, requests: int = REQUESTS, **options: Any) -> Iterator[list[Answers]]:
    """Clients who ask while the block runs, and until there were enough; every request must have been answered."""
    found: list[Answers] = []
    with load(line, "levada-predictor-iris", instances()[0], requests=requests, **options) as client:
        time.sleep(1)
        yield found
        found.append(client.stop())
    answers = found[0]
    print(
        f"{answers.requests} requests, {answers.again} sent again, {len(answers.failed)} failed, "
        f"versions {dict(answers.versions)}, longest {answers.longest:.2f} s"
    )
    assert answers.failed == []
    assert set(answers.statuses) == {"200"}
    assert answers.requests >= requests


# The same data cannot lead the champion, so the test decides in the gate's place; all else is real.
PROMOTE = """
from dataclasses import replace
from levada.registry import gate, promote, train
judge = gate.judge
gate.judge = lambda *given, **named: replace(judge(*given, **named), outcome="promoted")
run = f"load-{time.time():.0f}"
version = train.train(here, pipeline, run)
promote.promote(here, pipeline, run)
print(json.dumps({"version": version, "at": time.time()}))
"""


@pytest.mark.row(47, part="on two predictors under load")
@pytest.mark.row(52)
def test_promotion_and_rollback(line: Line, in_trainer: InTrainer, two: None) -> None:
    before = version(line.predictor_url("iris"))
    with asking(line) as found:
        promoted: dict[str, Any] = in_trainer(_HERE + PROMOTE)
        time.sleep(25)
    assert set(found[0].versions) == {before, promoted["version"]}
    everywhere = found[0].last[before] - promoted["at"]
    with asking(line) as found:
        began = time.time()
        said = levada(line, "rollback", "iris", "--why", "a drill", "--by", "test")  # as an operator does, from outside
        assert f"rolled back from version {promoted['version']} to {before}" in said
        time.sleep(30)
    assert set(found[0].versions) == {before, promoted["version"]}
    returned = found[0].last[promoted["version"]] - began
    print(f"the last old answer {everywhere:.1f} s after the promotion, {returned:.1f} s after the roll back began")
    assert everywhere <= 20
    assert returned <= 30
    assert version(line.predictor_url("iris")) == before


@pytest.mark.row(52, part="restart, drain and a killed pod")
def test_restart_drain_and_kill(line: Line, two: None) -> None:
    with asking(line) as found:
        line.kubectl("rollout", "restart", PREDICTOR)
        line.kubectl("rollout", "status", PREDICTOR, "--timeout=180s", timeout=190)
        evicted = pods(line)[0]
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": evicted, "namespace": line.target.namespace},
        }
        path = f"/api/v1/namespaces/{line.target.namespace}/pods/{evicted}/eviction"
        line.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        wait_for(lambda: evicted not in pods(line) and len(pods(line)) == 2, 120)
        wait_for(lambda: all(asked(line, pod) for pod in pods(line)), 30)
        assert line.target.cluster is not None
        for pid in line.target.cluster.faults.processes(line.target.namespace, pods(line)[0])["predictor"]:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(pods(line)) < 2, 30)
        wait_for(lambda: len(pods(line)) == 2, 120)
    assert found[0].again  # the kill met requests


def test_predictions_go_on_while_all_stores_are_away(line: Line, two: None) -> None:
    away = {"kafka": "statefulset", "s3": "statefulset", "postgres": "statefulset", "mlflow": "deployment"}
    before = version(line.predictor_url("iris"))
    with asking(line) as found, ExitStack() as back:
        for component, kind in away.items():
            workload = f"{kind}/levada-{component}"
            line.kubectl("scale", workload, "--replicas=0")
            back.callback(line.kubectl, "scale", workload, "--replicas=1")
            line.kubectl(
                "wait", "pod", f"--selector=app.kubernetes.io/component={component}", "--for=delete", "--timeout=120s",
                timeout=130,
            )  # fmt: skip
        time.sleep(20)  # some looks at the registry
        assert len(pods(line)) == 2
    assert set(found[0].versions) == {before}
    line.wait_until_ready(240)


def test_a_crowd_brings_pods_and_takes_them_away(line: Line, tmp_path: Path) -> None:
    with serving(line, tmp_path, replicas=1, maxReplicas=3):
        grow_and_shrink(line)


def test_requests_in_flight_bring_pods_and_take_them_away(line: Line, tmp_path: Path) -> None:
    with custom_metrics(line, tmp_path), serving(line, tmp_path, in_flight=0.2, replicas=1, maxReplicas=3):
        grow_and_shrink(line)


def grow_and_shrink(line: Line) -> None:
    """Three predictors while there is a crowd, one before and after it; no request fails."""
    # As deployed it waits for five minutes before it takes pods away.
    quick = {"stabilizationWindowSeconds": 5, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}
    scaler = "horizontalpodautoscaler/levada-predictor-iris"
    line.kubectl("patch", scaler, "-p", json.dumps({"spec": {"behavior": {"scaleDown": quick}}}))
    wait_for(lambda: len(pods(line)) == 1, 180)
    with asking(line, requests=1000, connections=2, pause=0.2):
        with asking(line):
            grown = wait_for(lambda: len(pods(line)) == 3, 240)
            wait_for(lambda: all(asked(line, pod) for pod in pods(line)), 60)
        shrunk = wait_for(lambda: len(pods(line)) == 1, 300)
    print(f"three pods after {grown:.0f} s under load, one again {shrunk:.0f} s after it")
