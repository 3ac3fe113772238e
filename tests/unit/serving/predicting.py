"""A predictor that listens on 127.0.0.1: in a thread with any model, or as the real process."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from levada.config import PredictorSettings
from levada.http.keys import ApiKey
from levada.pipeline import Pipeline
from levada.scoring import OnnxModel
from levada.serving import serve
from levada.serving.app import Predictor
from levada.serving.loaded import Loaded
from tests.unit.ingest.collecting import free_port

from .conftest import DECLARED, KEY

API_KEY = "k-of-this-test"
OTHER_KEY = "k-of-another-model"
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = {
    "mine": ApiKey(sha256=digest(API_KEY), pipelines=("things",)),
    "other": ApiKey(sha256=digest(OTHER_KEY), pipelines=("other",)),
}


def loaded(raw: bytes, version: str) -> Loaded:
    return Loaded("things", version, OnnxModel(raw), run_id=f"run-{version}", snapshot="77")


class Running:
    """A predictor in a thread."""

    def __init__(self, pipeline: Pipeline, **options: Any) -> None:
        self.champion: Loaded | None = None
        self.ready = False
        self.app = Predictor(
            pipeline, lambda: self.champion, lambda: self.ready, 1_000_000, keys=lambda: KEYS, **options
        )
        self.stop = threading.Event()
        self.port = free_port()
        settings = PredictorSettings(port=self.port)
        self.thread = threading.Thread(
            target=lambda: asyncio.run(serve.answer(self.app, settings, self.stop)), daemon=True
        )
        self.thread.start()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError("the predictor does not listen")

    def close(self) -> None:
        """Drain and stop, as SIGTERM does."""
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def ask(
        self, body: bytes | str | dict[str, Any] | None, path: str = "/predict", method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, raw, HEADERS | {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        parsed = json.loads(content) if "json" in response.headers.get("content-type", "") else {"text": content}
        return response.status, parsed, response.headers


class Process:
    """The process ``levada serve``, until :meth:`stop`."""

    def __init__(
        self,
        folder: Path,
        mlflow: str,
        declared: Any = DECLARED,
        wait: bool = True,
        python: str = sys.executable,
        **settings: str,
    ) -> None:
        pipelines = folder / "pipelines"
        pipelines.mkdir(exist_ok=True)
        (pipelines / "things.json").write_text(json.dumps(declared))
        (folder / "gate").write_bytes(KEY)
        keys = {name: key.model_dump() for name, key in KEYS.items()}
        (folder / "keys.json").write_text(json.dumps(keys))
        self.log = folder / "predictor.log"
        self.port, health = free_port(), free_port()
        self.url, self.health = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{health}"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LEVADA_")},
            "LEVADA_PIPELINES": str(pipelines),
            "LEVADA_PIPELINE": "things",
            "LEVADA_MLFLOW__URI": mlflow,
            "LEVADA_GATE_KEY_FILE": str(folder / "gate"),
            "LEVADA_PREDICTOR__PORT": str(self.port),
            "LEVADA_PREDICTOR__API_KEYS_FILE": str(folder / "keys.json"),
            "LEVADA_PREDICTOR__CACHE": str(folder / "cache"),
            "LEVADA_PREDICTOR__POLL_SECONDS": "0.2",
            "LEVADA_HEALTH_PORT": str(health),
            **settings,
        }
        command = [python, "-c", "from levada.cli.main import main; main()", "serve"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while wait and not self.ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.health}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """Kill it, as a machine that goes away would."""
        self.process.kill()
        self.process.wait()
