"""The health port answers what the probes ask, and the process says what it is."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from levada.process import Health


def status(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health() -> None:
    ready = False
    health = Health(0, ready=lambda: ready, host="127.0.0.1")
    try:
        assert status(health.port, "/livez")[0] == 200
        assert status(health.port, "/readyz")[0] == 503
        ready = True
        assert status(health.port, "/readyz?verbose")[0] == 200
        assert "python_info" in status(health.port, "/metrics")[1]
        assert status(health.port, "/other")[0] == 404
    finally:
        health.close()
    with pytest.raises(urllib.error.URLError):
        status(health.port, "/livez")
