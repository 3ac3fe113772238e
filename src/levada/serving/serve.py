"""The predictor as a process."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import Any, Final

import structlog

from levada import process
from levada.config import PredictorSettings, Settings, read_secret, required
from levada.http.keys import ApiKeys, load_keys
from levada.http.reload import Reloaded, refreshing
from levada.http.server import limits_of, listen, run
from levada.pipeline import Pipeline
from levada.serving.app import Predictor
from levada.serving.cache import Cache
from levada.serving.champion import Watcher
from levada.serving.log import PredictionLog
from levada.serving.registry import Registry
from levada.serving.shadow import Shadow

_KEEP_SECONDS: Final = 12.0
"""How long a process that stops waits for its predictions to be kept."""
_SWITCH_SECONDS: Final = 0.0005
"""How long a thread that reads a large body, or keeps predictions, may hold up the one that answers. Python's own 5 ms
are many times what an answer takes."""


def serve(settings: Settings, pipeline: Pipeline) -> None:
    """Answer predictions of one pipeline until SIGTERM.

    Raises:
        ConfigError: LEVADA_MLFLOW__URI or LEVADA_GATE_KEY_FILE is missing, or the file of API keys cannot be used.
    """
    chosen = settings.predictor
    key = read_secret(required(settings.gate_key_file, "LEVADA_GATE_KEY_FILE")).encode()
    registry = Registry(required(settings.mlflow, "LEVADA_MLFLOW__URI").uri)
    shadows = pipeline.serving.challenger == "shadow"
    watcher = Watcher(registry, Cache(chosen.cache, pipeline.name), pipeline.name, key, shadow=shadows)
    kept = _log(settings, pipeline)
    shadow = Shadow(pipeline.name, lambda: watcher.challenger, *([kept.shadow] if kept is not None else []))
    mirrors = [*([kept.mirror] if kept is not None else []), *([shadow.mirror] if shadows else [])]

    def mirror(*answered: Any) -> None:
        for each in mirrors:
            each(*answered)

    keys = _keys(chosen.api_keys_file)
    app = Predictor(
        pipeline,
        lambda: watcher.champion,
        lambda: watcher.ready,
        chosen.max_body_bytes,
        keys=(lambda: keys.value) if keys is not None else None,
        name=kept.name if kept is not None else None,
        mirror=mirror,
    )

    def main(stop: threading.Event) -> None:
        sys.setswitchinterval(_SWITCH_SECONDS)
        threading.Thread(target=watcher.run, args=(stop, chosen.poll_seconds), name="watcher", daemon=True).start()
        if shadows:
            threading.Thread(target=shadow.run, args=(stop,), name="shadow", daemon=True).start()
        answered = threading.Event()
        keeper = threading.Thread(target=kept.run, args=(answered,), name="log", daemon=True) if kept else None
        if keeper is not None:
            keeper.start()
        run(answer(app, chosen, stop, keys))
        answered.set()
        if keeper is not None:
            keeper.join(_KEEP_SECONDS)

    process.run(main, settings, ready=lambda: watcher.ready)


def _log(settings: Settings, pipeline: Pipeline) -> PredictionLog | None:
    """Where predictions are kept, if they are."""
    stream = pipeline.predictions
    if stream is None:
        return None
    if settings.kafka is None:
        structlog.get_logger().warning("predictions are not kept: LEVADA_KAFKA__BOOTSTRAP is not set")
        return None
    return PredictionLog(settings.kafka, pipeline.name, stream, pipeline.serving.logged)


def _keys(path: Path | None) -> Reloaded[ApiKeys] | None:
    return Reloaded(path, lambda: load_keys(path)) if path is not None else None


async def answer(
    app: Predictor, settings: PredictorSettings, stop: threading.Event, keys: Reloaded[ApiKeys] | None = None
) -> None:
    """Listen until ``stop``, and look whether the file of API keys changes."""
    async with refreshing(keys.refresh) if keys is not None else contextlib.nullcontext():
        await listen(app, settings.port, limits_of(settings), stop)
