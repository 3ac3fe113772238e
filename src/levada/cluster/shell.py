"""Running other programs."""

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from levada.cluster.errors import ClusterError


def run(argv: Sequence[str | Path], *, stdin: str | IO[bytes] | None = None, timeout: float = 300) -> str:
    """Run a program to its end and return what it printed; ClusterError with its last lines if it failed."""
    words = [str(word) for word in argv]
    text, file = (stdin, None) if isinstance(stdin, str) else (None, stdin)
    try:
        done = subprocess.run(
            words, input=text, stdin=file, capture_output=True, text=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{shlex.join(words)} did not end within {timeout:.0f} s") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise ClusterError(f"{shlex.join(words)} failed with exit code {done.returncode}:\n{tail}")
    return done.stdout


def succeeds(argv: Sequence[str | Path], *, timeout: float = 30) -> bool:
    """Whether a program ends well; its output is dropped."""
    try:
        run(argv, timeout=timeout)
    except ClusterError:
        return False
    return True


def until(attempt: Callable[[], object], seconds: float) -> None:
    """Try until it raises no ClusterError; the last one after some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            attempt()
            return
        except ClusterError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.7)


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one cluster: call it with its words, get what it prints."""

    program: Path
    kubeconfig: Path

    def __call__(self, *words: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run it to its end; ClusterError if it fails."""
        return run([self.program, "--kubeconfig", self.kubeconfig, *words], stdin=stdin, timeout=timeout)

    def items(self, *words: str) -> list[dict[str, Any]]:
        """The objects that `kubectl get …` finds."""
        found: list[dict[str, Any]] = json.loads(self("get", *words, "--output", "json"))["items"]
        return found
