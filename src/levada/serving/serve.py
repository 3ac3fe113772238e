"""The predictor as a process."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

from levada import process
from levada.config import PredictorSettings, Settings, read_secret, required
from levada.http.keys import ApiKeys, load_keys
from levada.http.reload import Reloaded, refreshing
from levada.http.server import limits_of, listen, run
from levada.pipeline import Pipeline
from levada.serving.app import Predictor
from levada.serving.cache import Cache
from levada.serving.champion import Watcher
from levada.serving.registry import Registry
from levada.serving.shadow import Shadow


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
        run(answer(app, chosen, stop, keys))

    process.run(main, settings, ready=lambda: watcher.ready)


def _keys(path: Path | None) -> Reloaded[ApiKeys] | None:
    return Reloaded(path, lambda: load_keys(path)) if path is not None else None


async def answer(
    app: Predictor, settings: PredictorSettings, stop: threading.Event, keys: Reloaded[ApiKeys] | None = None
) -> None:
    """Listen until ``stop``, and look whether the file of API keys changes."""
    async with refreshing(keys.refresh) if keys is not None else contextlib.nullcontext():
        await listen(app, settings.port, limits_of(settings), stop)
