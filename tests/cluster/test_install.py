"""What `helm install` by a namespace's admin leaves, and that doing it again changes nothing."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from pykube import HTTPClient
from pytest_helm_charts.clusters import Cluster
from pytest_helm_charts.k8s.deployment import wait_for_deployments_to_run
from pytest_helm_charts.k8s.stateful_set import wait_for_stateful_sets_to_run

from levada.line.status import quantity, read, render

from .conftest import Line

PYTHON_VERSION_OF = "python3 -c 'import importlib.metadata as m; print(m.version(\"{}\"))'"


def names(line: Line, kind: str) -> list[str]:
    return [item["metadata"]["name"] for item in line.target.objects(kind)]


@pytest.mark.row(63)
def test_namespace_admin_installed_all_of_it(line: Line, kube_cluster: Cluster) -> None:
    helm = subprocess.run(
        [line.target.helm_binary, "status", "levada", "-n", "levada", "-o", "json"],
        env=line.target.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(helm.stdout)["info"]["status"] == "deployed"
    client: HTTPClient = kube_cluster.kube_client
    wait_for_deployments_to_run(client, names(line, "deployments"), "levada", 10)
    wait_for_stateful_sets_to_run(client, names(line, "statefulsets"), "levada", 10)


def test_no_cluster_scoped_object(line: Line) -> None:
    kinds = line.admin.kubectl("api-resources", "--namespaced=false", "--verbs=list", "-o", "name").split()
    # Nodes and volumes are there for the line but not of it; metrics are no objects.
    skipped = {"nodes", "persistentvolumes", "nodes.metrics.k8s.io"}
    owned = line.admin.kubectl(
        "get", ",".join(kind for kind in kinds if kind not in skipped),
        "-l", "app.kubernetes.io/part-of=levada", "-o", "name",
    )  # fmt: skip
    assert owned.split() == []


def test_upgrade_with_no_change_restarts_nothing(line: Line) -> None:
    before = {name: pod["metadata"]["uid"] for name, pod in line.pods().items()}
    jobs = set(names(line, "jobs"))
    line.install()
    after = {name: pod["metadata"]["uid"] for name, pod in line.pods().items()}
    assert after == before
    # A CronJob may have started one of its own meanwhile.
    assert jobs <= set(names(line, "jobs"))


def test_nothing_restarted_and_nothing_pends(line: Line) -> None:
    for name, pod in line.pods().items():
        assert pod["status"]["phase"] == "Running", name
        for status in pod["status"]["containerStatuses"] + pod["status"].get("initContainerStatuses", []):
            assert status["restartCount"] == 0, f"{name}/{status['name']}: {status}"


@pytest.mark.parametrize(
    ("workload", "command"),
    [
        ("statefulset/levada-kafka", "ls /opt/kafka/libs | grep ^kafka-server-common"),
        ("statefulset/levada-postgres", "postgres --version"),
        ("statefulset/levada-s3", "weed version"),
        ("deployment/levada-airflow-api", PYTHON_VERSION_OF.format("apache-airflow")),
        ("deployment/levada-mlflow", PYTHON_VERSION_OF.format("mlflow")),
        ("statefulset/levada-prometheus", "prometheus --version"),
    ],
)
def test_the_version_named_is_the_one_that_runs(line: Line, workload: str, command: str) -> None:
    labels = json.loads(line.kubectl("get", workload, "-o", "json"))["metadata"]["labels"]
    named = labels["app.kubernetes.io/version"]
    assert re.search(rf"(?<![\d.]){re.escape(named)}(?!\d)", line.exec(workload, "sh", "-c", command)), named


def test_nano_fits(line: Line) -> None:
    """Requests of all pods of the line and one training pod: at most 2 CPU and 6 GiB."""
    trainer = json.loads(line.kubectl("get", "configmap", "levada-trainer", "-o", "json"))["data"]["pod.yaml"]
    pods = [pod["spec"] for pod in line.pods().values()]
    pods.append(json.loads(line.kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", stdin=trainer))["spec"])
    requests = [container["resources"]["requests"] for pod in pods for container in pod["containers"]]
    cpu = sum(float(r["cpu"][:-1]) / 1000 if r["cpu"].endswith("m") else float(r["cpu"]) for r in requests)
    memory = sum(quantity(r["memory"]) for r in requests)
    assert cpu <= 2
    assert memory <= 6 * 2**30


def test_status_is_one_screen_with_measured_memory(line: Line) -> None:
    status = read(line.target)
    assert status.ready
    screen = render(status)
    assert max(map(len, screen.splitlines())) <= 80
    assert len(screen.splitlines()) <= 40
    assert "MiB measured" in screen
    print(screen)


def test_helm_test_passes(line: Line) -> None:
    subprocess.run(
        [line.target.helm_binary, "test", "levada", "-n", "levada", "--timeout", "180s"],
        env=line.target.environment, check=True,
    )  # fmt: skip


def test_notes_name_what_to_do_next(line: Line) -> None:
    notes = subprocess.run(
        [line.target.helm_binary, "get", "notes", "levada", "-n", "levada"],
        env=line.target.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for words in ("helm -n levada test levada", "levada-api-key", "/predict", "levada-airflow", "delete pvc"):
        assert words in notes
