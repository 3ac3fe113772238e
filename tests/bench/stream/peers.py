"""What the peers share: where their programs come from, their tables, one core, and what a process used of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyiceberg.schema import Schema

from levada import lake
from levada.pipeline import parse_pipeline
from tests.environments import CACHE

from .consumers import ENTRY

ROOT = Path(__file__).parents[3]
POMS = Path(__file__).with_name("poms")
OTHER_CORE, CORE = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
"""The broker's core and the bench's own, and the one that is measured."""
PINNED = ("taskset", "--cpu-list", str(CORE))
_INSTALL_SECONDS = 600.0

Found = dict[str, float]
"""CPU and wall seconds of a way, as ``cpu`` and ``wall``."""


class LeftOutError(Exception):
    """A peer that cannot be had here; the message says why."""


# --- where programs come from


def jars(pom: Path) -> Path:
    """The folder of the jars that a pom.xml names and of all that they need, kept in the cache.

    Raises:
        LeftOutError: no Java, no Maven, or they cannot be had.
    """
    name = pom.stem if pom.stem != "pom" else pom.parent.name
    folder = CACHE / f"{name}-jars-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        fresh = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
        _install(["mvn", "--batch-mode", "--quiet", "--file", str(pom), *copy])
        for old in CACHE.glob(f"{name}-jars-*"):
            if old != fresh:
                shutil.rmtree(old)
        fresh.rename(folder)
    if shutil.which("java") is None:
        raise LeftOutError("java is missing: apt-get install default-jre-headless")
    return folder


def python(name: str, needed: Sequence[str]) -> str:
    """A Python with these packages, in an environment apart from all of ours.

    Raises:
        LeftOutError: they cannot be had.
    """
    folder = CACHE / name
    found, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(needed):
        _install([sys.executable, "-m", "uv", "venv", "--clear", str(folder)])
        _install([sys.executable, "-m", "uv", "pip", "install", "--python", str(found), *needed])
        ready.write_text("\n".join(needed))
    return str(found)


def _install(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        said = f"{getattr(error, 'stdout', '') or ''}{getattr(error, 'stderr', '') or ''}" or str(error)
        errors = [line for line in said.splitlines() if "ERROR" in line] or said.strip().splitlines()[-1:]
        raise LeftOutError(errors[0]) from error


# --- tables


def catalog(folder: Path) -> lake.Catalog:
    """On this disk, in SQLite, which Java's JdbcCatalog reads as well."""
    location = {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    return lake.Catalog(lake.CATALOG, schema_version="v1", **location)


def make_tables(folder: Path, *names: str, places: bool) -> None:
    """The tables that the sink would make; or of the values alone, without ids, times and places."""
    tables = catalog(folder)
    for name in names:
        pipeline = parse_pipeline(ENTRY, name)
        if places:
            lake.ensure_table(tables, pipeline)
            continue
        fields = lake.iceberg_schema(pipeline).fields[: len(ENTRY["fields"])]
        tables.create_namespace_if_not_exists(pipeline.table[0])
        tables.create_table(pipeline.table, Schema(*fields), properties={"format-version": "2"})


def rows(folder: Path, name: str) -> int:
    """How many rows are committed to a table; its metadata says so."""
    snapshot = catalog(folder).load_table(("events", name)).current_snapshot()
    return 0 if snapshot is None or snapshot.summary is None else int(snapshot.summary["total-records"] or 0)


def distinct(folder: Path, name: str, column: str) -> int:
    found = catalog(folder).load_table(("events", name)).scan(selected_fields=(column,)).to_arrow()
    return len(set(found[column].to_pylist()))


# --- processes


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def process(command: Sequence[str], folder: Path, name: str = "log") -> Iterator[Process]:
    """A process on the measured core, until the end of the block; what it says goes to a file of this name."""
    with (folder / name).open("wb") as log:
        started = subprocess.Popen([*PINNED, *command], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield Process(started, folder / name)
    finally:
        started.kill()
        started.wait()


class Process:
    """A peer that runs."""

    def __init__(self, started: subprocess.Popen[bytes], log: Path) -> None:
        self._started, self._log = started, log
        self.pid = started.pid

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            said = self._log.read_text(errors="replace")[-3000:]
            assert self._started.poll() is None, f"ended before {what}:\n{said}"
            assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s:\n{said}"
            time.sleep(0.1)
