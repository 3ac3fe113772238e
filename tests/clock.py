"""A wall clock that a test sets, for one process, while that process runs.

The process is started with a library before its others that moves CLOCK_REALTIME and leaves CLOCK_MONOTONIC, as
setting a machine's clock does. libfaketime knows nothing of C11's cnd_timedwait, by which librdkafka waits until a time
of the wall clock: with it such a wait lasts as long as the clock is ahead, and a step back disturbs none. Here both are
as on a machine.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from levada.cluster import Console, packages
from levada.cluster.errors import ClusterError

_SOURCE = Path(__file__).with_suffix(".c")


class Clock:
    """A clock for the processes that are started with :attr:`environment`."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("gcc") is None:
            try:
                packages.ensure(["gcc", "libc6-dev"], Console())
            except ClusterError as error:
                pytest.skip(f"no C compiler: {error}")
        library, self._ahead = folder / "clock.so", folder / "ahead"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, _SOURCE], check=True)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._ahead)}

    def set(self, ahead: int) -> None:
        """Step to so many seconds ahead of the machine's clock."""
        with self._ahead.open("r+b" if self._ahead.exists() else "wb") as file:
            file.write(ahead.to_bytes(8, "little", signed=True))
