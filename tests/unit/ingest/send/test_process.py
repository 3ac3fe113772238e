"""The real command: killed and started again, and with a large file in little memory."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.ingest.collecting import Collecting
from tests.unit.ingest.kafka import PARTITIONS, MockKafka

from .conftest import Held, write_csv


def start(collector: Collecting, path: Path, pipeline: str, *options: str) -> subprocess.Popen[str]:
    where = ["--url", collector.url, "--key-file", str(collector.key_file), "--pipeline", pipeline]
    command = [sys.executable, "-c", "from levada.cli.main import main; main()", "send", str(path), *where, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def peak_memory(process: subprocess.Popen[str]) -> int:
    """The most memory that a process ever had, in MiB, once it has ended."""
    peak = 0
    while process.poll() is None:
        # Not by wait4: what that tells counts the memory of the process that started this one.
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024
        time.sleep(0.05)
    return peak


def answered(state: Path) -> int:
    return int(json.loads(state.read_text())["answered"]) if state.exists() else 0


def test_killed_at_random_moments(tmp_path: Path, collector: Collecting, held: Callable[[str], Held]) -> None:
    path, topic = tmp_path / "f.csv", held("free")
    bad = set(range(0, 40_000, 100))
    path.write_text("n,user\n" + "".join(f"{-n - 1 if n in bad else n},u{n % 97}\n" for n in range(40_000)))
    state = tmp_path / "f.csv.free.sent.json"
    chance = random.Random(4)
    kills, goal = 0, 1
    while True:
        process = start(collector, path, "free", "--in-flight", "3", "--batch", "200")
        while process.poll() is None and answered(state) < goal:
            time.sleep(0.01)
        time.sleep(chance.random() / 5)
        process.kill()
        out, _ = process.communicate()
        if process.returncode == 1:  # at the end, since rows were refused
            break
        kills, goal = kills + 1, answered(state) + chance.randrange(1000, 9000)
    assert "39600 rows accepted, 400 refused." in out
    assert kills >= 3
    refused = (tmp_path / "f.csv.free.refused.ndjson").read_text().splitlines()
    assert [json.loads(line)["row"] for line in refused] == [n + 1 for n in sorted(bad)]
    rows = {json.loads(m.value())["n"]: dict(m.headers())["event-id"] for m in topic.messages()}
    assert len(rows) == len(set(topic.ids())) == 39_600
    print(f"{kills} kills, {len(topic.messages()) - 39_600} rows came again under their ids")


@pytest.mark.row(14, process=True)
def test_23_megabytes_of_csv(tmp_path: Path, collector: Collecting, kafka: MockKafka) -> None:
    """What ended the earlier system's producer: one message of 23 MB. Here it is requests of a thousand rows."""
    path, rows = tmp_path / "f.csv", 210_000
    note = "0123456789" * 10
    write_csv(path, rows, note)
    assert 23e6 < path.stat().st_size < 24e6
    begin = time.monotonic()
    process = start(collector, path, "big", "--in-flight", "4")
    peak = peak_memory(process)
    out, error = process.communicate()
    seconds = time.monotonic() - begin
    assert (process.returncode, out) == (0, f"{path}: {rows} rows accepted, 0 refused.\n"), error
    assert sum(kafka.end("big", partition) for partition in PARTITIONS) == rows
    print(f"{rows / seconds:.0f} rows/s, {peak} MiB")
    assert peak < 300


def test_the_exit_code_tells_of_refusals(tmp_path: Path, collector: Collecting) -> None:
    path = tmp_path / "f.csv"
    path.write_text("n,user,extra\n-1,u,\n1,u,\n")
    process = start(collector, path, "free")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert error.startswith(f"levada: {path}: 'extra' is not a field of pipeline free")
    process = start(collector, path, "free", "--skip", "extra")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, f"{path}: 1 rows accepted, 1 refused.\n")
    assert error == f"Which rows, and why: {path}.free.refused.ndjson\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "nowhere.invalid:1"], "levada: no collector answers at nowhere.invalid:1 .*: correct --url"),
        (["--key-file", "{folder}/wrong"], "levada: the collector answers 401, .*: give the right key with --key-file"),
        (["--key-file", "{folder}/none"], "levada: credential file .*/none cannot be read: No such file"),
        (["--pipeline", "nothing"], "levada: the collector answers 404, .*: declare the pipeline first, or correct"),
        (["--format", "xml"], "(?s).*xml is none of csv, ndjson and parquet"),
    ],
)
def test_a_mistake_is_named_with_what_to_do(
    tmp_path: Path, collector: Collecting, options: list[str], message: str
) -> None:
    path = write_csv(tmp_path / "f.csv", 10)
    (tmp_path / "wrong").write_text("wrong")
    process = start(collector, path, "free", *(option.format(folder=tmp_path) for option in options))
    out, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out == ""
    assert re.match(message, error), error
