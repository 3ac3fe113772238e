"""Commands that need what only the cluster has, from outside: they run there, in a pod of the release."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import yaml

from levada.line.target import LineError, Target

_POLL_SECONDS = 0.5


def run(target: Target, command: Sequence[str], *, timeout: float) -> tuple[str, int]:
    """Run ``levada <command>`` with the rights of the release's administrator of Kafka; its output and exit code.

    Raises:
        LineError: the release has no such Job, or its pod did not end within ``timeout`` seconds.
    """
    schedule = json.loads(target.kubectl("get", "cronjob", target.name("topics"), "-o", "json"))
    template = schedule["spec"]["jobTemplate"]["spec"]["template"]
    spec = template["spec"]
    spec.pop("initContainers", None)
    spec["restartPolicy"] = "Never"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": template["metadata"]["labels"]}, "spec": spec}
    return _run(target, pod, command, timeout)


def run_gate(target: Target, pipeline: str, command: Sequence[str], *, timeout: float) -> tuple[str, int]:
    """Run ``levada <command>`` for a pipeline with the gate's key, as its DAGs do; its output and exit code.

    Raises:
        LineError: the pipeline is not declared, the release has no gate, or its pod did not end within ``timeout``
            seconds.
    """
    target.pipeline(pipeline)  # a mistyped name is told at once
    held = json.loads(target.kubectl("get", "configmap", target.name("trainer"), "-o", "json"))["data"]
    pod = yaml.safe_load(held["pod.yaml"])
    pod["metadata"]["labels"]["levada.io/pipeline"] = pipeline
    pod["spec"]["containers"][0]["env"].append({"name": "LEVADA_PIPELINE", "value": pipeline})
    return _run(target, pod, command, timeout)


def _run(target: Target, pod: dict[str, Any], command: Sequence[str], timeout: float) -> tuple[str, int]:
    name = pod["metadata"]["name"] = target.name(f"{command[0]}-{secrets.token_hex(4)}")
    pod["spec"]["containers"][0]["command"] = ["levada", *command]
    target.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        deadline = time.monotonic() + timeout
        while True:
            status = json.loads(target.kubectl("get", "pod", name, "-o", "json"))["status"]
            if status["phase"] in ("Succeeded", "Failed"):
                ended = status["containerStatuses"][0]["state"]["terminated"]["exitCode"]
                return target.kubectl("logs", name), int(ended)
            if time.monotonic() > deadline:
                raise LineError(f"pod {name} did not end within {timeout:.0f} s: {status['phase']}")
            time.sleep(_POLL_SECONDS)
    finally:
        target.kubectl("delete", "pod", name, "--wait=false", "--ignore-not-found")
