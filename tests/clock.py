"""A wall clock that a test sets, for one process, while that process runs.

The process is started with a library before its others that moves CLOCK_REALTIME and leaves CLOCK_MONOTONIC, as
setting a machine's clock does. libfaketime knows nothing of C11's cnd_timedwait, by which librdkafka waits until a time
of the wall clock: with it such a wait lasts as long as the clock is ahead, and a step back disturbs none. Here both are
as on a machine.
"""

from __future__ import annotations

from pathlib import Path

from tests.compiler import compile_c

_SOURCE = Path(__file__).with_suffix(".c")


class Clock:
    """A clock for the processes that are started with :attr:`environment`."""

    def __init__(self, folder: Path) -> None:
        library = compile_c(_SOURCE, folder / "clock.so", "-shared", "-fPIC")
        self._ahead = folder / "ahead"
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._ahead)}

    def set(self, ahead: int) -> None:
        """Step to so many seconds ahead of the machine's clock."""
        with self._ahead.open("r+b" if self._ahead.exists() else "wb") as file:
            file.write(ahead.to_bytes(8, "little", signed=True))
