"""Files that may change while a process runs: declarations and API keys, mounted from ConfigMaps and Secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client import Gauge

from levada.ingest.admission import Declared
from levada.ingest.seal import Sealer
from levada.pipeline import declared_names, load_pipeline, load_pipelines

BROKEN: Final = Gauge(
    "levada_collector_file_broken", "1 while a changed file is not usable and its last good content is used.", ["file"]
)

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


class Declarations(Mapping[str, Declared]):
    """The declared pipelines by name, kept up to date by :meth:`refresh`.

    Args:
        folder: where the declarations are.
        sealer: makes the digests of sensitive values; without it, pipelines that need one cannot be used.

    Raises:
        PipelineError: at construction, if any declaration cannot be used.
    """

    def __init__(self, folder: Path, sealer: Sealer | None) -> None:
        self._folder = folder
        self._sealer = sealer
        self._files: dict[str, Reloaded[Declared]] = {}
        for pipeline in load_pipelines(folder).values():
            Declared(pipeline, sealer)
        self.refresh()

    def refresh(self) -> None:
        """See what was added, changed and taken away."""
        names = declared_names(self._folder)
        self._files = {name: known for name, known in self._files.items() if name in names}
        for name in names:
            if name in self._files:
                self._files[name].refresh()
                continue
            path = next(path for path in self._folder.glob(f"{name}.*") if path.suffix in (".json", ".yaml"))
            try:
                self._files[name] = Reloaded(path, partial(self._load, name))
            except Exception as error:
                BROKEN.labels(path.name).set(1)
                log.error("new declaration not usable", file=str(path), error=str(error))
            else:
                BROKEN.labels(path.name).set(0)

    def _load(self, name: str) -> Declared:
        return Declared(load_pipeline(self._folder, name), self._sealer)

    def __getitem__(self, name: str) -> Declared:
        declared = self._files[name].value
        if not declared.pipeline.enabled:
            raise KeyError(name)
        return declared

    def __iter__(self) -> Iterator[str]:
        return (name for name, file in self._files.items() if file.value.pipeline.enabled)

    def __len__(self) -> int:
        return sum(1 for _ in self)
