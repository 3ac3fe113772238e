"""The real process `levada collect`, with pipelines and API keys of the caller's."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

API_KEY = "k-of-this-test"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Collecting:
    """A collector that runs until :meth:`stop`, and can be started again at the same address."""

    def __init__(self, folder: Path, bootstrap: str, pipelines: Mapping[str, Any], **settings: str) -> None:
        self.declared, keys = folder / "pipelines", folder / "keys.json"
        self.declared.mkdir()
        for name, entry in pipelines.items():
            (self.declared / f"{name}.json").write_text(json.dumps(entry))
        sha256 = hashlib.sha256(API_KEY.encode()).hexdigest()
        keys.write_text(json.dumps({"test": {"sha256": sha256, "pipelines": ["*"]}}))
        pepper = folder / "pepper"
        pepper.write_text("0123456789abcdef" * 4)
        self.key_file = folder / "key"
        self.key_file.write_text(f"{API_KEY}\n")
        self.log = folder / "collector.log"
        self.port, health = free_port(), free_port()
        self.url, self._health = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{health}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LEVADA_")},
            "LEVADA_PIPELINES": str(self.declared),
            "LEVADA_KAFKA__BOOTSTRAP": bootstrap,
            "LEVADA_KAFKA__PROTOCOL": "PLAINTEXT",
            "LEVADA_COLLECTOR__PORT": str(self.port),
            "LEVADA_COLLECTOR__API_KEYS_FILE": str(keys),
            "LEVADA_COLLECTOR__PEPPER_FILE": str(pepper),
            "LEVADA_HEALTH_PORT": str(health),
            **settings,
        }
        self.start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-c", "from levada.cli.main import main; main()", "collect"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self._health}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> str:
        return httpx.get(f"{self._health}/metrics").text

    def stop(self) -> None:
        """Kill it, as a machine that goes away would."""
        self.process.kill()
        self.process.wait()
