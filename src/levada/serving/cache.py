"""Files and records of the versions that served last, on disk: a predictor starts by them while the registry is away.

Nothing here is believed: a file is used only if it has the digest that the signed record names, and the records carry
their signatures.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from levada.serving.registry import Version

_RECORDS: Final = "versions.json"

log = structlog.get_logger()


class Cache:
    """The folder of one model; one that cannot be written costs only what it was for."""

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder / model
        self._records = b""

    def versions(self) -> list[Version]:
        """The versions that were known last; none if that cannot be told."""
        try:
            found: list[dict[str, Any]] = orjson.loads((self._folder / _RECORDS).read_bytes())
            return [Version(**each) for each in found]
        except (OSError, ValueError, TypeError):
            return []

    def remember(self, versions: Iterable[Version]) -> None:
        """Keep what is known of versions."""
        raw = orjson.dumps([asdict(version) for version in versions])
        if raw != self._records and self._write(self._folder / _RECORDS, raw):
            self._records = raw

    def read(self, version: str, sha256: str) -> bytes | None:
        """A file of a version by its hex digest; None if it is not here, or not as it was written."""
        path = self._folder / version / sha256
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(raw).hexdigest() == sha256:
            return raw
        log.error("a cached file was changed, it is not used", file=str(path))
        return None

    def write(self, version: str, sha256: str, raw: bytes) -> None:
        """Keep a file of a version."""
        self._write(self._folder / version / sha256, raw)

    def forget_all_but(self, versions: Collection[str]) -> None:
        """Remove the files of all other versions."""
        for folder in self._folder.glob("*/"):
            if folder.name not in versions:
                shutil.rmtree(folder, ignore_errors=True)

    def _write(self, path: Path, raw: bytes) -> bool:
        half = path.with_name(f"{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(raw)
            half.replace(path)
        except OSError as error:
            log.warning("not cached; a restart will need the registry", file=str(path), error=str(error))
            return False
        return True
