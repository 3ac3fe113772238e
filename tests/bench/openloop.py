"""Tail latency at a fixed rate, by a client that keeps its own time."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.compiler import compile_c

_folder = tempfile.TemporaryDirectory(prefix="openloop-")


@cache
def _client() -> Path:
    return compile_c(Path(__file__).with_suffix(".c"), Path(_folder.name) / "openloop")


def tail(
    port: int, request: bytes, *, rate: float, seconds: float, connections: int, cores: str
) -> tuple[float, float]:
    """p50 and p99 in milliseconds, from when a request was due; every one must be answered with a 2xx."""
    words = [str(_client()), str(port), f"{rate}", f"{seconds}", str(connections)]
    done = subprocess.run(["taskset", "-c", cores, *words], input=request, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    p50, p99 = (float(text) * 1000 for text in done.stdout.split())
    return p50, p99
