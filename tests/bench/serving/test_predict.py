"""What a prediction costs: CPU time of the server per request, as a ratio to the least that ASGI can answer.

Method: one uvicorn process an application, one keep-alive connection, one row a request, rounds of both in turn; user
plus system time of the server process from /proc. CPU time moves far less with the neighbours than requests a second.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS, REQUESTS = 5, 2000
BODY = json.dumps({"instances": [{"petal_length": 1.4, "petal_width": 0.2, "sepal_length": 5.1, "sepal_width": 3.5}]})


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(name: str) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", f"tests.bench.serving.apps:{name}", "--port", str(port), *options]
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, port
        except OSError:
            time.sleep(0.2)
    process.terminate()
    raise TimeoutError(f"{name} did not start")


def round_of(pid: int, port: int) -> float:
    """CPU microseconds of the server for one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    begin = cpu_seconds(pid)
    for _ in range(REQUESTS):
        connection.request("POST", "/predict", BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()
    return (cpu_seconds(pid) - begin) / REQUESTS * 1e6


def test_cpu_of_a_prediction() -> None:
    servers = {name: serve(name) for name in ("hello", "predictor")}
    try:
        for process, port in servers.values():
            round_of(process.pid, port)  # warm-up
        figures = {name: [] for name in servers}  # type: dict[str, list[float]]
        for _ in range(ROUNDS):
            for name, (process, port) in servers.items():
                figures[name].append(round_of(process.pid, port))
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait(timeout=10)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    print("\nCPU microseconds a request, median of rounds (min to max):")
    for name, values in figures.items():
        print(f"  {name:<10} {medians[name]:6.1f}  ({min(values):.1f} to {max(values):.1f})")
    print(f"  predictor / hello = {medians['predictor'] / medians['hello']:.2f}")
