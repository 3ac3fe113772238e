"""Takes memory in the control group of a container until the kernel has killed a process of it.

Run as a script with the group's file of processes, the id of the process that is to die and the group's limit in bytes.
It takes no more than the limit and ends by itself, and what it took goes with it.
Only the standard library is imported, so that hardly any memory is taken before it is in the group.
"""

import os
import select
import sys
import time
from pathlib import Path

STEP = 1 << 20
SECONDS = 30.0


def main(group: str, victim: str, limit: str) -> None:
    """Enter the group and take memory until the victim has ended."""
    gone = select.poll()
    gone.register(os.pidfd_open(int(victim)), select.POLLIN)
    Path(group).write_text("0")
    taken: list[bytes] = []
    deadline = time.monotonic() + SECONDS
    while not gone.poll(0):
        if len(taken) * STEP > int(limit) or time.monotonic() > deadline:
            sys.exit(f"process {victim} lives on, {len(taken)} MiB later")
        taken.append(b"x" * STEP)  # written to: memory that is only promised does not count


if __name__ == "__main__":
    main(*sys.argv[1:])
