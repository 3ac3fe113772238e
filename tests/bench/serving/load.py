"""Load on a server: wrk as fast as it goes, with 32 keep-alive connections on core 1."""

from __future__ import annotations

import re
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.debian import need

from .servers import Server, cpu_seconds

CONNECTIONS, CLIENT_CORE = 32, 1


@dataclass
class Measured:
    """One server and one kind of request."""

    server: Server
    rows: int
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """CPU microseconds a request."""
        return statistics.median(self.costs)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return statistics.median(self.rates)


def wrk(measured: Measured, seconds: float, folder: Path) -> None:
    """Add one round to what is measured; each answer must be a 2xx. ``folder`` is for the script."""
    need("wrk", "wrk")
    server, script = measured.server, folder / "post.lua"
    head, _, body = server.request(measured.rows).decode().partition("\r\n\r\n")
    lines = [line.split(": ", 1) for line in head.split("\r\n")[1:] if not line.startswith(("Host", "Content-Length"))]
    headers = "\n".join(f'wrk.headers["{name}"] = "{text}"' for name, text in lines)
    script.write_text(f'wrk.method = "POST"\nwrk.body = [==[{body}]==]\n{headers}\n')
    begin = cpu_seconds(server.pid)
    done = subprocess.run(
        ["taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency",
         "--timeout", "30s", "-s", str(script), server.url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "Non-2xx" not in done, done
    count = int(re.search(r"(\d+) requests in", done)[1])  # type: ignore[index]
    measured.costs.append((cpu_seconds(server.pid) - begin) / count * 1e6)
    measured.rates.append(float(re.search(r"Requests/sec: +(\S+)", done)[1]))  # type: ignore[index]
    for percentile, values in (("50", measured.p50), ("99", measured.p99)):
        number, unit = re.search(rf"{percentile}% +([\d.]+)(us|ms|s)", done).groups()  # type: ignore[union-attr]
        values.append(float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit])
