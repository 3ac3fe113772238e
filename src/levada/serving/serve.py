"""The predictor as a process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from pathlib import Path
from typing import Final

import uvloop

from levada import process
from levada.config import PredictorSettings, Settings, read_secret, required
from levada.http.connection import Limits
from levada.http.keys import ApiKeys, load_keys
from levada.http.reload import Reloaded
from levada.http.server import listen
from levada.pipeline import Pipeline
from levada.serving.app import Predictor
from levada.serving.cache import Cache
from levada.serving.champion import Watcher
from levada.serving.registry import Registry
from levada.serving.shadow import Shadow

_REFRESH_SECONDS: Final = 2.0
_GARBAGE_OBJECTS: Final = 10_000


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
    shadow = Shadow(pipeline.name, lambda: watcher.challenger)
    keys = _keys(chosen.api_keys_file)
    app = Predictor(
        pipeline,
        lambda: watcher.champion,
        lambda: watcher.ready,
        chosen.max_body_bytes,
        keys=(lambda: keys.value) if keys is not None else None,
        mirror=shadow.mirror,
    )

    def main(stop: threading.Event) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every poll
        threading.Thread(target=watcher.run, args=(stop, chosen.poll_seconds), name="watcher", daemon=True).start()
        if shadows:
            threading.Thread(target=shadow.run, args=(stop,), name="shadow", daemon=True).start()
        # What is loaded by now stays, and some hundred requests under way are no garbage.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE_OBJECTS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(answer(app, chosen, stop, keys))

    process.run(main, settings, ready=lambda: watcher.ready)


def _keys(path: Path | None) -> Reloaded[ApiKeys] | None:
    return Reloaded(path, lambda: load_keys(path)) if path is not None else None


async def answer(
    app: Predictor, settings: PredictorSettings, stop: threading.Event, keys: Reloaded[ApiKeys] | None = None
) -> None:
    """Listen until ``stop``, and look whether the file of API keys changes."""
    limits = Limits(settings.header_timeout, settings.body_timeout, settings.max_header_bytes, settings.max_connections)
    refreshing = asyncio.create_task(_refresh(keys)) if keys is not None else None
    try:
        await listen(app, settings.port, limits, stop)
    finally:
        if refreshing is not None:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing


async def _refresh(keys: Reloaded[ApiKeys]) -> None:
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        await asyncio.to_thread(keys.refresh)
