"""A client that sends one hostile request of each kind, at a fixed rate, whatever the answers do.

usage: python -m tests.bench.serving.hostile PORT RATE

It prints "ready", begins when it is told a line, and prints how many answers were not as meant.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.unit.http.hostile import allowed, talk
from tests.unit.serving.test_hostile import CASES

_AT_ONCE = 64


def send(port: int, rate: float) -> list[str]:
    """Send all; the kinds whose answer was not as meant."""
    wrong = []

    def one(name: str, request: bytes, expected: str) -> None:
        if tuple(talk(port, request)[0]) not in allowed(expected):
            wrong.append(name)

    begin = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, (name, (request, expected)) in enumerate(CASES.items()):
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            pool.submit(one, name, request, expected)
    return wrong


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(*send(int(sys.argv[1]), float(sys.argv[2])), sep=", ")
