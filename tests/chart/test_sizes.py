"""How much the chart asks of a cluster, and what it tells its user."""

from __future__ import annotations

import json
import re

from .policy import Pod, pods, quantity
from .render import Release, install, render

MIB = 2**20


def requests(pod: Pod) -> tuple[float, float]:
    """Processors and bytes that the scheduler keeps free for one pod."""
    init, main = pod.spec.get("initContainers", []), pod.spec["containers"]
    cpu, memory = (
        max([sum(_request(each, name) for each in main), *(_request(each, name) for each in init)])
        for name in ("cpu", "memory")
    )
    return cpu, memory


def _request(container: dict[str, dict[str, dict[str, str]]], name: str) -> float:
    return quantity(container["resources"]["requests"][name])


def total(release: Release, *kinds: str) -> tuple[float, float]:
    """Requests of all pods of some kinds together."""
    cpu = memory = 0.0
    for pod in pods(release):
        if pod.owner["kind"] in kinds and pod.component != "test":
            replicas = pod.owner["spec"].get("replicas", 1)
            cpu, memory = cpu + requests(pod)[0] * replicas, memory + requests(pod)[1] * replicas
    return cpu, memory


def test_nano_fits_a_small_node_while_it_trains_or_sets_itself_up() -> None:
    release = render("local", "profiles/nano")
    line = total(release, "Deployment", "StatefulSet")
    # The tasks of a DAG follow one another: of their pods there is one at a time.
    tasks = [requests(pod) for pod in pods(release) if pod.owner["kind"] == "Pod" and pod.component != "test"]
    assert len(tasks) == 2
    for passing in (*tasks, total(release, "Job"), total(release, "CronJob")):
        cpu, memory = (sum(pair) for pair in zip(line, passing, strict=True))
        assert cpu <= 1.7, passing
        assert memory <= 6 * 1024 * MIB, passing


def test_helm_can_store_the_release() -> None:
    """A Secret holds at most 1 MiB."""
    assert install("local", "profiles/nano", "regions/ap-northeast-2").stored_bytes <= 700 * 1024


def test_the_notes_say_how_to_remove_what_outlives_the_release() -> None:
    notes, release = install("local").notes, render("local")
    removed = {kind: set(names.split()) for kind, names in re.findall(r"delete (pvc|secret) (.*)", notes)}
    claims = {f"data-{each['metadata']['name']}-0" for each in release.kind("StatefulSet")}
    secrets = json.loads(release.find("ConfigMap", "levada-credentials")["data"]["spec.json"])
    assert removed == {"pvc": claims, "secret": set(secrets)}


def test_the_notes_say_how_to_use_the_release() -> None:
    notes, release = install("local").notes, render("local")
    assert "helm -n levada test levada" in notes
    services = {each["metadata"]["name"] for each in release.kind("Service")}
    named = set(re.findall(r"svc/([\w-]+)", notes))
    assert named == {f"levada-{part}" for part in ("collector", "predictor-", "airflow", "mlflow", "prometheus")}
    assert all(any(service.startswith(name) for service in services) for name in named)
