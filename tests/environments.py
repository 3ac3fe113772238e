"""Virtual environments beside the tests' own, made once and kept: a room's image as it is locked, or a bench's peer."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

UV = str(Path(sys.executable).with_name("uv"))
CACHE = Path(os.environ.get("LEVADA_BENCH_ENVIRONMENTS", Path.home() / ".cache" / "levada" / "bench"))
_IMAGES = Path(__file__).parents[1] / "images"


def image(name: str) -> Path:
    """Folder of an environment with the packages of an image, and no others."""
    lock, containerfile = (_IMAGES / name / file for file in ("requirements.txt", "Containerfile"))
    digest = hashlib.sha256(lock.read_bytes() + containerfile.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    if not (folder / "made").exists():
        install = [UV, "pip", "install", "--python", str(folder / "bin" / "python"), "--no-deps", "--require-hashes"]
        for command in ([UV, "venv", "--clear", str(folder)], [*install, "--compile", "-r", str(lock)]):
            subprocess.run(command, check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        dropped = re.search(r"venv drop (.*) \\\n", containerfile.read_text())
        for pattern in shlex.split(dropped[1]) if dropped is not None else ():
            for path in packages.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / "made").touch()
    return folder
