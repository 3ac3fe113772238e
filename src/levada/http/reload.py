"""Files that may change while a process runs, mounted from ConfigMaps and Secrets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client import Gauge

BROKEN: Final = Gauge(
    "levada_file_broken", "1 while a changed file is not usable and its last good content is used.", ["file"]
)

_REFRESH_SECONDS: Final = 2.0

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


class Reloaded(Generic[_T]):
    """The content of a file, loaded again when the file changes; a broken change leaves the last good content.

    Kubernetes replaces mounted files by swapping a symbolic link, so a change is seen in inode and time of what the
    path leads to.
    """

    def __init__(self, path: Path, load: Callable[[], _T]) -> None:
        self._path = path
        self._load = load
        self._loaded = self._failed = self._fingerprint()
        self.value = load()

    def refresh(self) -> None:
        """Load the file again if it changed."""
        found = self._fingerprint()
        if found == self._loaded:
            return
        try:
            self.value = self._load()
        except Exception as error:
            BROKEN.labels(self._path.name).set(1)
            if found != self._failed:
                log.error("changed file not usable, the last good one stays", file=str(self._path), error=str(error))
            self._failed = found
            return
        self._loaded = self._failed = found
        BROKEN.labels(self._path.name).set(0)
        log.info("loaded", file=str(self._path))

    def _fingerprint(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


@contextlib.asynccontextmanager
async def refreshing(refresh: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``refresh`` now and then, on a thread, while the context lasts.

    One that fails is logged, and called again like any other: what it loaded before stays in use.
    """

    async def keep_on() -> None:
        said = ""
        while True:
            try:
                await asyncio.to_thread(refresh)
                said = ""
            except Exception as error:
                # Once for each problem, not every two seconds as long as it lasts.
                if said != repr(error):
                    log.exception("files could not be looked at, the last good ones stay")
                said = repr(error)
            await asyncio.sleep(_REFRESH_SECONDS)

    task = asyncio.create_task(keep_on())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
