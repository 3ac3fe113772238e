"""The commands' own part: errors as one line, and the exit code by which a DAG knows that there is nothing to do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from levada.batch import SKIP_EXIT_CODE
from levada.cli.main import main
from levada.registry.errors import NotEnoughData, TrainingError
from levada.registry.promote import Approval
from levada.registry.replay import Replay


@pytest.fixture(autouse=True)
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "iris.yaml").write_text("fields: {a: {type: double}, b: {type: string}}\nmodel: {label: b}\n")
    monkeypatch.setenv("LEVADA_PIPELINES", str(tmp_path))
    monkeypatch.setenv("LEVADA_PIPELINE", "iris")
    monkeypatch.setenv("LEVADA_MLFLOW__URI", "http://127.0.0.1:1")


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """What the command gives to sys.exit: a code, or a message (which Python prints, with code 1)."""
    monkeypatch.setattr(sys, "argv", ["levada", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_a_training_that_fails_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise TrainingError("no such trainer")

    monkeypatch.setattr("levada.registry.train.train", stop)
    assert ended(monkeypatch, "train", "--run", "a") == "levada: no such trainer"


def test_too_few_rows_are_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object) -> None:
        raise NotEnoughData("12 rows")

    monkeypatch.setattr("levada.registry.train.train", stop)
    assert ended(monkeypatch, "train", "--run", "a") == SKIP_EXIT_CODE
    assert "levada: 12 rows" in capsys.readouterr().err


def test_without_the_gates_key_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "LEVADA_GATE_KEY_FILE is not set" in str(ended(monkeypatch, "promote", "--run", "a"))


def test_an_approval_names_who_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def start(*arguments: object) -> SimpleNamespace:
        given.extend(arguments[2:])
        return SimpleNamespace(outcome="needs approval", version="3", reason="alarm: a")

    monkeypatch.setattr("levada.registry.promote.promote", start)
    ended(monkeypatch, "promote", "--run=a", "--approve=a new scale", "--by=ada")
    ended(monkeypatch, "promote", "--run=b")
    assert given == ["a", Approval("ada", "a new scale"), "b", None]


@pytest.mark.parametrize(
    ("outcome", "options", "code"),
    [
        ("promoted", ["--approve=a new scale"], 0),
        ("kept", ["--approve=a new scale"], 3),
        ("refused", ["--approve=a new scale"], 3),
        ("needs approval", ["--approve=a new scale"], 3),  # the gate spoke for the first time
        ("kept", [], 0),
        ("needs approval", [], 0),
    ],
)
def test_a_promotion_says_its_outcome_and_an_approval_that_did_not_promote_ends_with_3(
    outcome: str, options: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = SimpleNamespace(outcome=outcome, version="3", reason="accuracy 0.95; a tie")
    monkeypatch.setattr("levada.registry.promote.promote", lambda *_: record)
    assert ended(monkeypatch, "promote", "--run=a", *options) == code
    assert capsys.readouterr() == (f"version 3: {outcome}: accuracy 0.95; a tie\n", "")


@pytest.mark.parametrize("why", ["", "  \n"])
@pytest.mark.parametrize(
    ("command", "option"), [(["promote", "--run=a"], "--approve"), (["rollback", "iris"], "--why")]
)
def test_a_blank_reason_is_none(command: list[str], option: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ended(monkeypatch, *command, f"{option}={why}", "--by=ada")
    assert f"levada: {option} is blank: write why, as it shall stand in the signed record, like {option} " in str(said)


@pytest.mark.parametrize(("replayed", "said", "code"), [(0.9, "the same model", 0), (0.8, "another model", 1)])
def test_a_replay_ends_well_if_the_same_model_comes_out(
    replayed: float, said: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Replay("3", {"accuracy": (0.9, replayed)}, 0.0, ["package a==1 then"])
    monkeypatch.setattr("levada.registry.replay.replay", lambda *_: done)
    assert ended(monkeypatch, "replay", "iris", "3") == code
    out = capsys.readouterr().out
    assert said in out
    assert "changed since: package a==1 then" in out


def test_a_roll_back_without_settings_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "LEVADA_GATE_KEY_FILE is not set" in str(ended(monkeypatch, "rollback", "iris"))


def test_a_bad_rule_is_named_by_the_process_that_meets_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "iris.yaml").write_text("fields: {a: {type: double, rule: 'aa > 1'}}\n")
    for command in (["train", "--run", "a"], ["sink"]):
        assert "fields.a.rule names the field `aa`" in str(ended(monkeypatch, *command))
    # A predictor applies none, and has not their parser in memory.
    assert "LEVADA_GATE_KEY_FILE is not set" in str(ended(monkeypatch, "serve"))
