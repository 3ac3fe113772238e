"""Settings come from the environment, credentials from files, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from levada.config import ConfigError, required, settings


def test_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "username").write_text("us/er")
    (tmp_path / "password").write_text("p@ss\n")
    monkeypatch.setenv("LEVADA_KAFKA__BOOTSTRAP", "kafka:9092")
    monkeypatch.setenv("LEVADA_KAFKA__CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("LEVADA_POSTGRES__HOST", "pg")
    monkeypatch.setenv("LEVADA_POSTGRES__DATABASE", "lake")
    monkeypatch.setenv("LEVADA_POSTGRES__CREDENTIALS", str(tmp_path))
    read = settings()
    assert required(read.kafka, "LEVADA_KAFKA__BOOTSTRAP").client()["sasl.password"] == "p@ss"
    url = required(read.postgres, "LEVADA_POSTGRES__HOST").url()
    assert url == "postgresql+psycopg://us%2Fer:p%40ss@pg:5432/lake?sslmode=prefer"
    (tmp_path / "password").write_text("rotated")
    assert "rotated" in required(read.postgres, "LEVADA_POSTGRES__HOST").url()
    (tmp_path / "password").unlink()
    with pytest.raises(ConfigError, match="password cannot be read"):
        required(read.kafka, "LEVADA_KAFKA__BOOTSTRAP").client()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="LEVADA_KAFKA__BOOTSTRAP is not set"):
        required(settings().kafka, "LEVADA_KAFKA__BOOTSTRAP")
    monkeypatch.setenv("LEVADA_POSTGRES__HOST", "pg")
    with pytest.raises(ConfigError, match="LEVADA_POSTGRES__DATABASE: Field required"):
        settings()


def test_a_window_of_no_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVADA_SINK__WINDOW_IDS", "0")
    with pytest.raises(ConfigError, match="LEVADA_SINK__WINDOW_IDS: Input should be greater than 0"):
        settings()
