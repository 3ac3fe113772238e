"""Commands that need Kafka, from outside: they run in the cluster, in a pod like that of the topics' schedule."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from levada.line.target import LineError, Target

_POLL_SECONDS = 0.5


def run(target: Target, command: Sequence[str], *, timeout: float) -> tuple[str, int]:
    """Run ``levada <command>`` with the rights of the release's administrator of Kafka; its output and exit code.

    What it prints is for that while in the log of its pod, and wherever the cluster sends the logs of pods.

    Raises:
        LineError: the release has no such Job, or its pod did not end within ``timeout`` seconds.
    """
    with _pod(target, command[0], ["levada", *command]) as name:
        deadline = time.monotonic() + timeout
        while True:
            status = json.loads(target.kubectl("get", "pod", name, "-o", "json"))["status"]
            if status["phase"] in ("Succeeded", "Failed"):
                ended = status["containerStatuses"][0]["state"]["terminated"]["exitCode"]
                return target.kubectl("logs", name), int(ended)
            if time.monotonic() > deadline:
                raise LineError(f"pod {name} did not end within {timeout:.0f} s: {status['phase']}")
            time.sleep(_POLL_SECONDS)


def run_unlogged(target: Target, command: Sequence[str], *, timeout: float) -> str:
    """As :func:`run`, but what the command prints comes here and is in no log; who asks needs the right to exec.

    Raises:
        LineError: the release has no such Job, its pod did not start within ``timeout`` seconds, or the command failed,
            with what it said.
    """
    seconds = f"{timeout:.0f}"
    # The pod ends by itself if nobody is left to delete it.
    with _pod(target, command[0], ["sleep", seconds]) as name:
        target.kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={seconds}s", timeout=timeout + 10)
        return target.kubectl("exec", name, "--", "levada", *command, timeout=timeout)


@contextmanager
def _pod(target: Target, kind: str, command: Sequence[str]) -> Iterator[str]:
    """The name of a pod that runs this command, as long as the context lasts."""
    schedule = json.loads(target.kubectl("get", "cronjob", target.name("topics"), "-o", "json"))
    template = schedule["spec"]["jobTemplate"]["spec"]["template"]
    name = target.name(f"{kind}-{secrets.token_hex(4)}")
    spec = template["spec"]
    spec.pop("initContainers", None)
    spec["restartPolicy"] = "Never"
    spec["containers"][0]["command"] = list(command)
    metadata = {"name": name, "labels": template["metadata"]["labels"]}
    target.kubectl(
        "create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    )
    try:
        yield name
    finally:
        target.kubectl("delete", "pod", name, "--wait=false", "--ignore-not-found")
