"""The declarations, which may change while the collector runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import structlog

from levada.http.reload import BROKEN, Reloaded
from levada.ingest.admission import Declared
from levada.ingest.seal import Sealer
from levada.pipeline import declared_file, declared_names, load_pipeline, load_pipelines

log = structlog.get_logger(__name__)


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
        files = {name: known for name, known in self._files.items() if name in names}
        for name in names:
            if name in files:
                files[name].refresh()
                continue
            path = declared_file(self._folder, name)
            if path is None:  # taken away since it was listed
                continue
            try:
                files[name] = Reloaded(path, partial(self._load, name))
            except Exception as error:
                BROKEN.labels(path.name).set(1)
                log.error("new declaration not usable", file=str(path), error=str(error))
            else:
                BROKEN.labels(path.name).set(0)
        self._files = files  # at once: requests read it in another thread

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
