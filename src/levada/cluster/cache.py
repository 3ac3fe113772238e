"""The one folder that outlives `levada cluster down`."""

import os
from pathlib import Path


def cache() -> Path:
    """Folder for what is dear to make again: $LEVADA_CACHE, else ~/.cache/levada."""
    folder = Path(os.environ.get("LEVADA_CACHE") or Path.home() / ".cache" / "levada")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
