"""Commands that need what only the cluster has, from outside: they run there, in a pod of the release."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml

from levada.line.target import LineError, Target

_POLL_SECONDS = 0.5


def run(target: Target, command: Sequence[str], *, timeout: float) -> tuple[str, int]:
    """Run ``levada <command>`` with the rights of the release's administrator of Kafka; its output and exit code.

    What it prints is for that while in the log of its pod, and wherever the cluster sends the logs of pods.

    Raises:
        LineError: the release has no such Job, or its pod did not end within ``timeout`` seconds.
    """
    return _run(target, _of_kafka(target), command, timeout)


def run_unlogged(target: Target, command: Sequence[str], *, timeout: float) -> str:
    """As :func:`run`, but what the command prints comes here and is in no log; who asks needs the right to exec.

    Raises:
        LineError: the release has no such Job, its pod did not start within ``timeout`` seconds, or the command failed,
            with what it said.
    """
    seconds = f"{timeout:.0f}"
    # The pod ends by itself if nobody is left to delete it.
    with _running(target, _of_kafka(target), command[0], ["sleep", seconds]) as name:
        target.kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={seconds}s", timeout=timeout + 10)
        return target.kubectl("exec", name, "--", "levada", *command, timeout=timeout)


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


def _of_kafka(target: Target) -> dict[str, Any]:
    """A pod with the rights of the release's administrator of Kafka."""
    schedule = json.loads(target.kubectl("get", "cronjob", target.name("topics"), "-o", "json"))
    template = schedule["spec"]["jobTemplate"]["spec"]["template"]
    spec = template["spec"]
    spec.pop("initContainers", None)
    spec["restartPolicy"] = "Never"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": template["metadata"]["labels"]}, "spec": spec}


def _run(target: Target, pod: dict[str, Any], command: Sequence[str], timeout: float) -> tuple[str, int]:
    with _running(target, pod, command[0], ["levada", *command]) as name:
        deadline = time.monotonic() + timeout
        while True:
            status = json.loads(target.kubectl("get", "pod", name, "-o", "json"))["status"]
            if status["phase"] in ("Succeeded", "Failed"):
                ended = status["containerStatuses"][0]["state"]["terminated"]["exitCode"]
                return target.kubectl("logs", name), int(ended)
            if time.monotonic() > deadline:
                raise LineError(f"pod {name} did not end within {timeout:.0f} s: {status['phase']}")
            time.sleep(_POLL_SECONDS)


@contextmanager
def _running(target: Target, pod: dict[str, Any], kind: str, command: Sequence[str]) -> Iterator[str]:
    """The name of a pod that runs this command, as long as the context lasts."""
    name = pod["metadata"]["name"] = target.name(f"{kind}-{secrets.token_hex(4)}")
    pod["spec"]["containers"][0]["command"] = list(command)
    target.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        yield name
    finally:
        target.kubectl("delete", "pod", name, "--wait=false", "--ignore-not-found")
