"""A sink in a process of its own, to be killed."""

from __future__ import annotations

import threading
from pathlib import Path

from levada import lake
from levada.stream import sink
from levada.stream.source import Source

from .rig import SMALL, Rig


def carry(bootstrap: str, folder: str, name: str) -> None:
    """Run a sink of pipeline ``name`` until it is killed; it commits as often as it can."""
    rig = Rig(bootstrap, Path(folder), name)
    rig.declare({**SMALL, "key": "n"})
    sink._POLL_SECONDS, sink._POLL_MESSAGES = 0.01, 40  # type: ignore[misc]
    sink._COMMIT_GAP_SECONDS = sink._IDLE_SECONDS = 0.02  # type: ignore[misc]
    Source.topic = lambda _: rig.topic  # type: ignore[method-assign]
    lake.catalog = lambda _: rig.catalog()  # type: ignore[assignment]
    sink.Sink(rig.settings, rig.pipeline).run(threading.Event())
