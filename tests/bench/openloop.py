"""Tail latency at a fixed rate, by a client that keeps its own time."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.compiler import compile_c

_folder = tempfile.TemporaryDirectory(prefix="openloop-")


class Tail(NamedTuple):
    """How long answers took, in milliseconds from when a request was due."""

    p50: float
    p99: float
    p99_undisturbed: float
    """Of the requests that were not under way while the machine kept the client itself from running."""
    disturbed: float
    """Share of those that were."""


@cache
def _client() -> Path:
    return compile_c(Path(__file__).with_suffix(".c"), Path(_folder.name) / "openloop")


def tail(port: int, request: bytes, *, rate: float, seconds: float, connections: int, cores: str) -> Tail:
    """Ask at a fixed rate; every answer must be a 2xx.

    The client comes first where it shares its cores: what it waits for them is no part of an answer.
    """
    words = [str(_client()), str(port), f"{rate}", f"{seconds}", str(connections)]
    first = ["nice", "-n", "-20", "taskset", "-c", cores]
    done = subprocess.run([*first, *words], input=request, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    p50, p99, undisturbed, disturbed = map(float, done.stdout.split())
    return Tail(p50 * 1000, p99 * 1000, undisturbed * 1000, disturbed)
