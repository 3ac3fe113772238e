"""What the tests have in C, compiled where it is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.debian import need


def compile_c(source: Path, target: Path, *options: str) -> Path:
    """The program or library that a source makes; the compiler is installed if there is none, or the test skipped."""
    need("gcc", "gcc", "libc6-dev")
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", *options, "-o", target, source, "-lm"], check=True)
    return target
