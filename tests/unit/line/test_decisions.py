"""What a person decides from outside of the cluster is done in a pod with the gate's key."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from levada.cli.main import main

POD = """
apiVersion: v1
kind: Pod
metadata: {name: trainer, namespace: levada, labels: {app.kubernetes.io/component: trainer}}
spec:
  serviceAccountName: levada-trainer
  restartPolicy: Never
  containers:
    - {name: base, image: levada/trainer:1, env: [{name: LEVADA_MLFLOW__URI, value: "http://levada-mlflow:5000"}]}
"""
DECLARED = {"fields": {"a": {"type": "double"}, "b": {"type": "string"}}, "model": {"label": "b"}}
# A cluster whose one pod ends as files tell: what is asked of it is written down, one call a line.
KUBECTL = """#!/bin/sh
cd "$(dirname "$0")"
shift 4  # --context … --namespace …
echo "$*" >> asked
case "$1 $2" in
    "get configmap") cat "$3.json" ;;
    "create -f") cat > created.json ;;
    "get pod") cat status.json ;;
    "logs "*) cat logs ;;
esac
"""


class Cluster:
    """The folder of :data:`KUBECTL`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("kubectl", "helm"):
            (folder / name).write_text(KUBECTL)
            (folder / name).chmod(0o755)
        self._write("levada-pipelines.json", {"data": {"iris.json": json.dumps(DECLARED)}})
        self._write("levada-trainer.json", {"data": {"pod.yaml": POD, "train.yaml": "no key to sign with"}})
        self.end(0, "")

    def _write(self, name: str, content: object) -> None:
        (self._folder / name).write_text(json.dumps(content))

    def end(self, code: int, logs: str) -> None:
        """Let the pod end like this."""
        terminated = {"state": {"terminated": {"exitCode": code}}}
        self._write(
            "status.json",
            {"status": {"phase": "Failed" if code else "Succeeded", "containerStatuses": [terminated]}},
        )
        (self._folder / "logs").write_text(logs)

    @property
    def asked(self) -> list[str]:
        return (self._folder / "asked").read_text().splitlines()

    @property
    def created(self) -> dict[str, object]:
        """The pod; none was made: an error."""
        made: dict[str, object] = json.loads((self._folder / "created.json").read_text())
        return made


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CONTEXT", "somewhere")
    for name in [name for name in os.environ if name.startswith("LEVADA_")]:
        monkeypatch.delenv(name)
    return Cluster(tmp_path)


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["levada", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (
            ["rollback", "iris", "--why=complaints from the north", "--by=ada"],
            ["rollback", "--why=complaints from the north", "--by=ada", "--", "iris"],
        ),
        (
            ["promote", "--run=a", "--approve=a new scale", "--by=ada", "--pipeline=iris"],
            ["promote", "--run=a", "--approve=a new scale", "--by=ada"],
        ),
        (["promote", "--run=a", "--pipeline=iris"], ["promote", "--run=a"]),
    ],
)
@pytest.mark.parametrize("code", [0, 3])
def test_a_decision_from_outside_is_made_in_a_pod_that_can_sign(
    arguments: list[str], command: list[str], code: int, cluster: Cluster, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cluster.end(code, "what the pod said\n")
    assert ended(monkeypatch, *arguments) == code
    assert capsys.readouterr() == ("what the pod said\n", "")
    pod: dict[str, object] = cluster.created
    name = pod["metadata"].pop("name")  # type: ignore[attr-defined]
    labels = {"app.kubernetes.io/component": "trainer", "levada.io/pipeline": "iris"}
    assert pod["metadata"] == {"namespace": "levada", "labels": labels}
    (container,) = pod["spec"]["containers"]  # type: ignore[index]
    assert container["command"] == ["levada", *command]
    assert container["env"] == [
        {"name": "LEVADA_MLFLOW__URI", "value": "http://levada-mlflow:5000"},
        {"name": "LEVADA_PIPELINE", "value": "iris"},
    ]
    assert name.startswith(f"levada-{command[0]}-")
    assert cluster.asked[-1] == f"delete pod {name} --wait=false --ignore-not-found"


def test_a_pipeline_that_is_not_declared_makes_no_pod(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ended(monkeypatch, "rollback", "iriss", "--by=ada")
    assert said == "levada: pipeline iriss is not declared; declared are iris"
    assert [line for line in cluster.asked if line.startswith(("create", "delete"))] == []


def test_a_promotion_without_a_pipeline_says_where_to_name_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "LEVADA_PIPELINE (or --pipeline) is not set" in str(ended(monkeypatch, "promote", "--run=a"))
