"""The predictor as a process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
import uvloop

from levada.config import Settings, read_secret, required
from levada.pipeline import Pipeline
from levada.process import run
from levada.serving.app import Predictor
from levada.serving.champion import Watcher
from levada.serving.registry import Registry

DRAIN_SECONDS: Final = 2.0
"""From SIGTERM to the end of listening: in it, every answer asks its client to close the connection."""
_FINISH_SECONDS: Final = 10
"""What a request that is under way then still has."""


class _Server(uvicorn.Server):
    """uvicorn, which here leaves the signals to :func:`levada.process.run`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings, pipeline: Pipeline) -> None:
    """Answer predictions of one pipeline until SIGTERM.

    Raises:
        ConfigError: LEVADA_MLFLOW__URI or LEVADA_GATE_KEY_FILE is missing.
    """
    key = read_secret(required(settings.gate_key_file, "LEVADA_GATE_KEY_FILE")).encode()
    registry = Registry(required(settings.mlflow, "LEVADA_MLFLOW__URI").uri)
    watcher = Watcher(registry, pipeline.name, key)
    app = Predictor(pipeline, lambda: watcher.champion, lambda: watcher.ready, settings.predictor.max_body_bytes)

    def main(stop: threading.Event) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every poll
        arguments = (stop, settings.predictor.poll_seconds)
        threading.Thread(target=watcher.run, args=arguments, name="watcher", daemon=True).start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(listen(app, "0.0.0.0", settings.predictor.port, stop))  # noqa: S104 - a pod's own address

    run(main, settings, ready=lambda: watcher.ready)


async def listen(app: Predictor, host: str, port: int, stop: threading.Event) -> None:
    """Serve ``app`` until ``stop``; then tell clients to go, stop listening, and finish what is under way."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="httptools",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=_FINISH_SECONDS,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while not (stop.is_set() or serving.done()):
        await asyncio.sleep(0.1)
    app.draining = True
    if not serving.done():
        await asyncio.sleep(DRAIN_SECONDS)
    server.should_exit = True
    await serving
