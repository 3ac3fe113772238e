"""What uninstall leaves, and that plain manifests bring the same line back on it."""

from __future__ import annotations

import json
import subprocess

import pytest

from levada.line import install

from .conftest import Line


@pytest.fixture(scope="module", autouse=True)
def rows(line: Line) -> int:
    """Rows in the lake before the release is uninstalled."""
    return line.rows("iris")


def test_uninstall_leaves_volumes_and_credentials_only(line: Line) -> None:
    notes = subprocess.run(
        [line.target.helm_binary, "get", "notes", "levada", "-n", "levada"],
        env=line.target.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    install.uninstall(line.target)
    kinds = line.admin.kubectl("api-resources", "--namespaced=true", "--verbs=list,create", "-o", "name").split()
    noise = {
        "events",
        "events.events.k8s.io",
        "leases.coordination.k8s.io",
        "localsubjectaccessreviews.authorization.k8s.io",
    }
    left = json.loads(line.admin.kubectl("get", ",".join(k for k in kinds if k not in noise), "-o", "json"))["items"]
    ours = {
        (item["kind"], item["metadata"]["name"])
        for item in left
        if item["metadata"]["name"] not in {"kube-root-ca.crt", "default", "installer"}
    }
    assert {kind for kind, _ in ours} == {"PersistentVolumeClaim", "Secret"}
    for _, name in ours:
        assert name in notes, f"{name} is left, and the notes do not name it"


def test_plain_manifests_twice_give_the_same_line(line: Line, rows: int) -> None:
    files = [argument for file in line.values for argument in ("--values", str(file))]
    rendered = subprocess.run(
        [line.target.helm_binary, "template", "levada", str(install.CHART), "-n", "levada", "--no-hooks", *files],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    line.kubectl("apply", "-f", "-", stdin=rendered)
    line.wait_until_ready(600)
    before = state(line)
    line.kubectl("apply", "-f", "-", stdin=rendered)
    assert state(line) == before
    # Same volumes, same credentials: the rows and the champion are there as before.
    report = line.demo()
    assert report.version == report.outcome["champion"]
    assert line.rows("iris") == rows


def state(line: Line) -> dict[str, object]:
    """Generation of every workload and identity of every pod: what a change would move.

    kubectl itself says "configured" of a StatefulSet each time: it compares claim templates without the defaults that
    the API server adds to them.
    """
    workloads = line.target.objects("deployments,statefulsets,cronjobs,jobs,services,configmaps")
    generations = {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"].get("generation", 0)
        for item in workloads
        if not item["metadata"].get("ownerReferences")  # a Job that a CronJob started meanwhile
    }
    return {**generations, **{name: pod["metadata"]["uid"] for name, pod in line.pods().items()}}
