"""Telling a waiting person what is going on: one plain line a phase, a moving line only on a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET_SECONDS = 20.0


class Progress(Protocol):
    """What long operations report to."""

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """A phase that takes its time; its seconds are told when it ends well."""
        yield

    def detail(self, text: str) -> None:
        """What the phase is at just now; may be called often."""


class Console:
    """Progress on standard error; lines begin with the seconds since the start."""

    def __init__(self) -> None:
        from rich.console import Console as Rich

        self._rich = Rich(stderr=True, highlight=False)
        self._start = self._told = time.monotonic()
        self._phase = ""
        self._status = self._rich.status("") if self._rich.is_terminal else None

    def _line(self, text: str) -> None:
        self._told = time.monotonic()
        self._rich.print(f"[{self._told - self._start:6.1f} s] {text}", markup=False, soft_wrap=True)

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Print a phase's begin, on a terminal as a moving line, and its seconds at its end."""
        start = time.monotonic()
        self._phase = text
        if self._status:
            self._status.update(text)
            self._status.start()
        else:
            self._line(text)
        try:
            yield
        finally:
            if self._status:
                self._status.stop()
        seconds = time.monotonic() - start
        if self._status or seconds >= 1:
            self._line(f"{text}: {seconds:.1f} s")
        sys.stderr.flush()

    def detail(self, text: str) -> None:
        """Show a detail: at once on a terminal, every 20 seconds elsewhere."""
        if self._status:
            self._status.update(f"{self._phase}: {text}")
        elif time.monotonic() - self._told > QUIET_SECONDS:
            self._line(f"{self._phase}: {text}")


class Silent:
    """Progress that nobody reads."""

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Do nothing."""
        yield

    def detail(self, text: str) -> None:
        """Do nothing."""
