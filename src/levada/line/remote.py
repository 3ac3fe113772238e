"""Commands that need Kafka's administrator or the gate's key, from outside: they run in a pod of the chart's."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import yaml

from levada.line.target import LineError, Target

_POLL_SECONDS = 0.5


def run(target: Target, command: Sequence[str], *, timeout: float, gate: bool = False) -> tuple[str, int]:
    """Run ``levada <command>`` with the rights of Kafka's administrator, or of the gate; its output and exit code.

    Raises:
        LineError: the release has no such pod, or it did not end within ``timeout`` seconds.
    """
    template = _gate(target) if gate else _administrator(target)
    name = target.name(f"{command[0]}-{secrets.token_hex(4)}")
    spec = template["spec"]
    spec.pop("initContainers", None)
    spec["restartPolicy"] = "Never"
    spec["containers"][0]["command"] = ["levada", *command]
    metadata = {"name": name, "labels": template["metadata"]["labels"]}
    target.kubectl(
        "create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    )
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


def _administrator(target: Target) -> dict[str, Any]:
    schedule = json.loads(target.kubectl("get", "cronjob", target.name("topics"), "-o", "json"))
    template: dict[str, Any] = schedule["spec"]["jobTemplate"]["spec"]["template"]
    return template


def _gate(target: Target) -> dict[str, Any]:
    templates = json.loads(target.kubectl("get", "configmap", target.name("trainer"), "-o", "json"))
    template: dict[str, Any] = yaml.safe_load(templates["data"]["pod.yaml"])
    return template
