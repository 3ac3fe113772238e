"""What `levada send` costs: a CSV of 2.5 GB in bounded memory, and CPU per row against the plain way to do it.

Method: the real command and the real collector, librdkafka's mock cluster behind it; the most memory that the command
ever had from /proc, its CPU and the collector's from there too. The plain way is csv.DictReader, one conversion a cell
and json.dumps, in this process, without sending anything. LEVADA_BENCH_SEND_BYTES changes the size.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from levada.ingest.send.rows import Place, reader
from levada.pipeline import parse_pipeline
from tests.unit.ingest.collecting import Collecting
from tests.unit.ingest.kafka import PARTITIONS, MockKafka

FIELDS = {
    "n": {"type": "long", "rule": "n >= 0"},
    "x": {"type": "double", "rule": "x BETWEEN 0 AND 1000"},
    "y": {"type": "double"},
    "user": {"type": "string"},
    "text": {"type": "string"},
}
CONVERT = {"n": int, "x": float, "y": float, "user": str, "text": str}


def write(path: Path, size: int, text: str) -> int:
    """A CSV of about ``size`` bytes; its rows."""
    rows = 0
    with path.open("w") as file:
        file.write(",".join(FIELDS) + "\n")
        while file.tell() < size:
            file.write("".join(f"{n},{n % 997 / 8},{n / 3:.6f},u{n % 97},{text}\n" for n in range(rows, rows + 1000)))
            rows += 1000
    return rows


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[Collecting, MockKafka]]:
    kafka = MockKafka()
    kafka.make_topic("p")
    collector = Collecting(tmp_path, kafka.bootstrap, {"p": {"fields": FIELDS}})
    yield collector, kafka
    collector.stop()
    kafka.kill()


@pytest.mark.parametrize(
    ("size", "text"),
    [(100_000_000, "short"), (int(os.environ.get("LEVADA_BENCH_SEND_BYTES", 2_500_000_000)), "0123456789" * 95)],
    ids=["short rows", "2.5 GB"],
)
def test_a_large_csv(tmp_path: Path, collector: tuple[Collecting, MockKafka], size: int, text: str) -> None:
    collect, kafka = collector
    path = tmp_path / "f.csv"
    rows = write(path, size, text)
    command = [sys.executable, "-c", "from levada.cli.main import main; main()", "send", str(path), "--pipeline", "p"]
    command += ["--url", collect.url, "--key-file", str(collect.key_file), "--in-flight", "4"]
    before, begin = cpu_seconds(collect.process.pid), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, cpu = 0, 0.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = next((int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")), peak)
        cpu = cpu_seconds(process.pid)
        time.sleep(0.05)
    seconds = time.monotonic() - begin
    out, _ = process.communicate()
    assert f"{rows} rows accepted, 0 refused." in out
    assert sum(kafka.end("p", partition) for partition in PARTITIONS) == rows
    print(
        f"\n{path.stat().st_size / 1e9:.2f} GB, {rows} rows of {size // rows} bytes: {seconds:.0f} s, "
        f"{rows / seconds:.0f} rows/s, {path.stat().st_size / seconds / 1e6:.0f} MB/s; CPU a row: levada send "
        f"{cpu / rows * 1e6:.1f} µs, collector {(cpu_seconds(collect.process.pid) - before) / rows * 1e6:.1f} µs; "
        f"memory at most {peak} MiB"
    )
    assert peak <= 300


def test_cpu_of_a_row_against_the_plain_way(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    rows = write(path, 30_000_000, "some text")
    pipeline = parse_pipeline({"fields": FIELDS}, "p")
    best = dict.fromkeys(("plain", "levada"), float("inf"))
    for _ in range(3):
        begin = time.process_time()
        with path.open(newline="") as text:
            plain = sum(
                len(json.dumps({name: CONVERT[name](cell) for name, cell in row.items()})) > 0
                for row in csv.DictReader(text)
            )
        best["plain"] = min(best["plain"], time.process_time() - begin)
        begin = time.process_time()
        with path.open("rb") as file:
            ours = sum(len(block.rows) for block in reader(file, path, "csv", pipeline).blocks(Place()))
        best["levada"] = min(best["levada"], time.process_time() - begin)
        assert plain == ours == rows
    each = {name: seconds / rows * 1e6 for name, seconds in best.items()}
    print(
        f"\nCSV to JSON lines, CPU a row: plain {each['plain']:.2f} µs, levada send {each['levada']:.2f} µs, "
        f"{each['plain'] / each['levada']:.1f} times less"
    )
