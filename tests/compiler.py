"""What the tests have in C, compiled where it is needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from levada.cluster import Console, packages
from levada.cluster.errors import ClusterError


def compile_c(source: Path, target: Path, *options: str) -> Path:
    """The program or library that a source makes; the compiler is installed if there is none, or the test skipped."""
    if shutil.which("gcc") is None:
        try:
            packages.ensure(["gcc", "libc6-dev"], Console())
        except ClusterError as error:
            pytest.skip(f"no C compiler: {error}")
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", *options, "-o", target, source, "-lm"], check=True)
    return target
