"""Commands that need Kafka, from outside: they run in the cluster, in a pod like that of the topics' schedule."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence

from levada.line.target import LineError, Target

_POLL_SECONDS = 0.5


def run(target: Target, command: Sequence[str], *, timeout: float) -> tuple[str, int]:
    """Run ``levada <command>`` with the rights of the release's administrator of Kafka; its output and exit code.

    Raises:
        LineError: the release has no such Job, or its pod did not end within ``timeout`` seconds.
    """
    schedule = json.loads(target.kubectl("get", "cronjob", target.name("topics"), "-o", "json"))
    template = schedule["spec"]["jobTemplate"]["spec"]["template"]
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
