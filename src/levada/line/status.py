"""One screen about a line: rooms, readiness, versions, memory, lag, rows, champion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from levada.line.registry import champion_version
from levada.line.target import LineError, Target, ready_pods

ROOMS = ("ingest", "stream", "stores", "batch", "registry", "serving", "observability")
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Component:
    """One workload of the line."""

    room: str
    name: str
    ready: int
    wanted: int
    restarts: int
    version: str
    mebibytes: float | None
    """Working set of its pods; None where the cluster serves no metrics."""


@dataclass(frozen=True)
class PipelineState:
    """One pipeline, from topic to champion; None where its process does not tell."""

    name: str
    rows: int | None
    lag: int | None
    dead: int | None
    champion: str | None
    metric: str | None


@dataclass(frozen=True)
class Status:
    """The whole line."""

    components: list[Component]
    pipelines: list[PipelineState]
    other_mebibytes: float
    """Working set of pods that belong to no long-running workload, such as a training pod."""

    @property
    def mebibytes(self) -> float | None:
        """Working set of all pods together."""
        known = [component.mebibytes for component in self.components if component.mebibytes is not None]
        return sum(known) + self.other_mebibytes if known else None

    @property
    def ready(self) -> bool:
        """Whether every component has all its pods ready."""
        return all(component.ready >= component.wanted for component in self.components)


def quantity(text: str) -> float:
    """Bytes that a Kubernetes quantity of memory names."""
    for suffix, factor in _BINARY.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def read(target: Target) -> Status:
    """Look at the line now.

    Raises:
        LineError: nothing of the release is installed.
    """
    workloads = target.objects("deployments,statefulsets")
    if not workloads:
        raise LineError(f"release {target.release} is not installed in namespace {target.namespace}: run `levada up`")
    pods = target.objects("pods")
    memory = _memory(target)
    components: list[Component] = []
    seen: set[str] = set()
    for workload in workloads:
        own = [pod for pod in pods if _selected(pod, workload)]
        seen.update(pod["metadata"]["name"] for pod in own)
        used = [memory[pod["metadata"]["name"]] for pod in own if pod["metadata"]["name"] in memory]
        components.append(
            Component(
                room=workload["metadata"]["labels"]["levada.io/room"],
                name=workload["metadata"]["name"].removeprefix(f"{target.release}-"),
                ready=ready_pods(own),
                wanted=workload["spec"].get("replicas", 1),
                restarts=sum(
                    status["restartCount"] for pod in own for status in pod["status"].get("containerStatuses", [])
                ),
                version=workload["metadata"]["labels"]["app.kubernetes.io/version"],
                mebibytes=sum(used) / 2**20 if memory else None,
            )
        )
    components.sort(key=lambda component: (ROOMS.index(component.room), component.name))
    other = sum(used for name, used in memory.items() if name not in seen) / 2**20
    return Status(components, [_pipeline(target, name, pods) for name in target.pipelines()], other)


def _selected(pod: dict[str, Any], workload: dict[str, Any]) -> bool:
    labels = pod["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in workload["spec"]["selector"]["matchLabels"].items())


def _memory(target: Target) -> dict[str, float]:
    """Pod → bytes of its working set; empty where metrics-server does not answer."""
    try:
        text = target.kubectl("get", "--raw", f"/apis/metrics.k8s.io/v1beta1/namespaces/{target.namespace}/pods")
    except LineError:
        return {}
    return {
        item["metadata"]["name"]: sum(quantity(container["usage"]["memory"]) for container in item["containers"])
        for item in json.loads(text)["items"]
        if item["metadata"].get("labels", {}).get("app.kubernetes.io/instance") == target.release
    }


def _pipeline(target: Target, name: str, pods: list[dict[str, Any]]) -> PipelineState:
    totals: dict[str, float] = {}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        if labels.get("app.kubernetes.io/component") != "sink" or labels.get("levada.io/pipeline") != name:
            continue
        try:
            families = list(text_string_to_metric_families(target.pod_metrics(pod["metadata"]["name"])))
        except LineError:  # not up yet
            continue
        for family in families:
            for sample in family.samples:
                if sample.labels.get("pipeline") != name:  # the predictions'
                    continue
                # Sinks share partitions, and each tells of the whole table, as of its own last commit.
                before = totals.get(sample.name, 0)
                of_the_table = sample.name.startswith("levada_lake_")
                totals[sample.name] = max(before, sample.value) if of_the_table else before + sample.value
    champion = metric = None
    try:
        version = champion_version(target, name)
    except LineError:  # not up yet
        version = None
    if version is not None:
        champion = str(version["version"])
        gate = json.loads(version["tags"].get("levada.gate", "{}"))
        metric = f"{gate['metric']} {gate['value']:.3f}" if gate else "moved by hand, not served"

    def whole(sample: str) -> int | None:
        return int(totals[sample]) if sample in totals else None

    return PipelineState(
        name,
        whole("levada_lake_rows"),
        whole("levada_sink_lag"),
        whole("levada_sink_dead_letters_total"),
        champion,
        metric,
    )


def render(status: Status) -> str:
    """The screen, at most 80 columns wide."""
    lines = [f"{'ROOM':<14}{'COMPONENT':<25}{'READY':>6}{'RESTARTS':>10}{'MEMORY':>10}  VERSION"]
    room = ""
    for component in status.components:
        shown, room = ("" if component.room == room else component.room), component.room
        memory = "-" if component.mebibytes is None else f"{component.mebibytes:.0f} MiB"
        ready = f"{component.ready}/{component.wanted}"
        last = component.version[:13] if component.ready >= component.wanted else "← not ready"
        lines.append(f"{shown:<14}{component.name[:24]:<25}{ready:>6}{component.restarts:>10}{memory:>10}  {last}")
    total = status.mebibytes
    lines += ["", f"{'PIPELINE':<20}{'ROWS':>10}{'LAG':>8}{'DEAD':>8}   CHAMPION"]
    for pipeline in status.pipelines:
        figures = ["-" if n is None else str(n) for n in (pipeline.rows, pipeline.lag, pipeline.dead)]
        champion = "none yet" if pipeline.champion is None else f"version {pipeline.champion} ({pipeline.metric})"
        lines.append(f"{pipeline.name[:19]:<20}{figures[0]:>10}{figures[1]:>8}{figures[2]:>8}   {champion}")
    if total is not None:
        lines += ["", f"Memory of the line: {total:.0f} MiB measured"]
    return "\n".join(lines)


PLACES = (
    ("Collector", "collector", 8080, "key: Secret {release}-api-key"),
    ("Order page", "orders", 8080, ""),
    ("Airflow", "airflow", 8080, "user and password: Secret {release}-airflow"),
    ("MLflow", "mlflow", 5000, ""),
    ("Prometheus", "prometheus", 9090, ""),
)
"""What a person opens if it is there: title, component, port and where its credentials are."""
