"""Waiting: short when the thing is there, said once a problem, over in time."""

from __future__ import annotations

import pytest

from levada.config import ConfigError, PostgresSettings
from levada.stores import wait
from levada.stores.apply import StoresSettings


def probe_failing(*problems: Exception) -> wait.Probe:
    left = list(problems)

    def probe() -> None:
        if left:
            raise left.pop(0)

    return probe


def test_it_tells_each_problem_once_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait.time, "sleep", lambda _: None)
    lines: list[str] = []
    probe = probe_failing(OSError("refused"), OSError("refused"), OSError("starting up\nmore"))
    wait.wait("postgres", probe, timeout=10, report=lines.append)
    assert lines[:2] == ["waiting for postgres: refused", "waiting for postgres: starting up"]
    assert lines[2].startswith("postgres is there after ")
    assert len(lines) == 3


def test_it_gives_up_and_never_waits_for_a_setting(tmp_path: object) -> None:
    with pytest.raises(wait.WaitError, match="kafka did not come within 0 s: refused"):
        wait.wait("kafka", probe_failing(OSError("refused")), timeout=0, report=lambda _: None)
    settings = PostgresSettings.model_validate({"host": "x", "database": "d", "credentials": f"{tmp_path}/none"})
    with pytest.raises(ConfigError, match="username cannot be read"):
        wait.wait("postgres", wait.postgres(settings), timeout=10, report=lambda _: None)


def test_what_the_stores_must_hold_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVADA_STORES__DATABASES", '{"lake": "lake_prod"}')
    monkeypatch.setenv("LEVADA_STORES__BUCKETS", '["lake", "mlflow"]')
    wanted = StoresSettings.read()
    assert (wanted.databases, wanted.buckets) == ({"lake": "lake_prod"}, ("lake", "mlflow"))
    for bad in ("lake", '{"a": 1}'):
        monkeypatch.setenv("LEVADA_STORES__BUCKETS", bad)
        with pytest.raises(ConfigError, match="LEVADA_STORES__BUCKETS"):
            StoresSettings.read()
