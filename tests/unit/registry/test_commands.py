"""The commands' own part: errors as one line, and the exit code by which a DAG knows that there is nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from levada.batch import SKIP_EXIT_CODE
from levada.cli import processes_model
from levada.registry.errors import NotEnoughData, TrainingError


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    (tmp_path / "iris.yaml").write_text("fields: {a: {type: double}, b: {type: string}}\nmodel: {label: b}\n")
    monkeypatch.setenv("LEVADA_PIPELINES", str(tmp_path))
    monkeypatch.setenv("LEVADA_PIPELINE", "iris")
    made = typer.Typer()
    processes_model.register(made)
    return made


@pytest.mark.parametrize(
    ("error", "code"), [(NotEnoughData("12 rows"), SKIP_EXIT_CODE), (TrainingError("no such trainer"), 1)]
)
def test_a_training_that_stops_says_why_in_one_line(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr("levada.registry.train.train", stop)
    result = CliRunner().invoke(app, ["train", "--run", "a"])
    assert result.exit_code == code
    assert str(error) in result.output or f"levada: {error}" == str(result.exception)


def test_without_a_registry_the_variable_is_named(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["promote", "--run", "a"])
    assert "LEVADA_GATE_KEY_FILE is not set" in str(result.exception)
