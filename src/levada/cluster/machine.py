"""The first process of a machine of the cluster: a process and mount namespace of its own, and what runs in it.

Run as a script by `levada.cluster.machines` with the path of a JSON file, as process 1 of a new process namespace:
when it ends, the kernel ends everything in the machine and its mounts go with it, as when power is lost.
It sets up what it is told, such as mounts, starts the programs, starts again what ends, reaps orphans and bounds the
logs. Only the standard library is imported, so that a machine costs few megabytes.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOG_BYTES = 32 << 20
FIRST_DELAY, LAST_DELAY, STEADY = 0.5, 10.0, 60.0
GRACE = 15.0
POLL = 0.2


class Program:
    """One program, started again when it ends, after a pause that doubles until it has run for a minute."""

    def __init__(self, name: str, argv: list[str], log: Path) -> None:
        self.name, self.argv, self.log = name, argv, log
        self.pid = 0
        self.due = self.started = 0.0
        self.delay = FIRST_DELAY

    def start(self) -> None:
        """Start it now."""
        with self.log.open("ab") as log:
            child = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        child.returncode = 0  # process 1 reaps every child itself: Popen must not
        self.pid, self.started = child.pid, time.monotonic()

    def ended(self, status: int) -> None:
        """Note that it ended and when to start it again."""
        now = time.monotonic()
        self.delay = FIRST_DELAY if now - self.started > STEADY else min(self.delay * 2, LAST_DELAY)
        self.pid, self.due = 0, now + self.delay
        print(f"{self.name} ended with status {status}, starts again in {self.delay:.0f} s", flush=True)

    def bound_log(self) -> None:
        """Keep one older log; the program goes on in the emptied file, which it has open for appending."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)


def prepare(spec: dict[str, Any]) -> None:
    """Run what comes before the programs and take the limits that they and containers inherit."""
    for argv in spec["setup"]:
        subprocess.run(argv, check=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def reap(programs: list[Program]) -> None:
    """Collect every child that ended, ours and adopted ones."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for program in programs:
            if program.pid == pid:
                program.ended(os.waitstatus_to_exitcode(status))


def stop(programs: list[Program]) -> None:
    """End the programs in reverse order, each with its time to end well."""
    for program in reversed(programs):
        if program.pid:
            os.kill(program.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE
            while program.pid and time.monotonic() < deadline:
                reap(programs)
                time.sleep(0.05)


def main(path: str) -> None:
    """Run the machine until SIGTERM."""
    spec = json.loads(Path(path).read_text())
    prepare(spec)
    logs = Path(spec["logs"])
    programs = [Program(name, argv, logs / f"{name}.log") for name, argv in spec["programs"].items()]
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    checked = time.monotonic()
    while not stopping.wait(POLL):
        reap(programs)
        now = time.monotonic()
        for program in programs:
            if not program.pid and now >= program.due:
                program.start()
        if now - checked > STEADY:
            checked = now
            for program in programs:
                program.bound_log()
    stop(programs)


if __name__ == "__main__":
    main(sys.argv[1])
