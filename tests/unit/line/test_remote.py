"""Commands that run in a pod: what kubectl is asked for, and that an answer nobody may keep is in no log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from levada.cli import line
from levada.cli.main import app
from levada.line import remote
from levada.line.target import LineError, Target

SCHEDULE = {
    "spec": {"jobTemplate": {"spec": {"template": {
        "metadata": {"labels": {"part": "topics"}},
        "spec": {"initContainers": [{}], "containers": [{"name": "topics", "command": ["levada", "topics", "apply"]}]},
    }}}}
}  # fmt: skip
ENDED = {"status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}}
KUBECTL = """#!/bin/sh
cd "$(dirname "$0")" || exit 9
shift 4  # --context and --namespace
echo "$*" >> asked
case "$1 $2" in
"get cronjob") cat schedule ;;
"get pod") cat ended ;;
"create -f") cat > pod ;;
"logs "*) echo "told by the log" ;;
"exec "*) if [ -e refuses ]; then echo "it holds no letter" >&2; exit 1; fi; echo "told by exec" ;;
esac
"""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A release behind a kubectl that writes down what it is asked for."""
    (tmp_path / "schedule").write_text(json.dumps(SCHEDULE))
    (tmp_path / "ended").write_text(json.dumps(ENDED))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    return Target(kubectl, kubectl, "here")


def asked(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "asked").read_text().splitlines()]


def test_a_command_is_what_its_pod_runs(target: Target, tmp_path: Path) -> None:
    assert remote.run(target, ["dead", "list", "--", "iris"], timeout=5) == ("told by the log\n", 3)
    spec = json.loads((tmp_path / "pod").read_text())["spec"]
    assert spec["containers"][0]["command"] == ["levada", "dead", "list", "--", "iris"]
    assert "initContainers" not in spec
    assert asked(tmp_path)[-1] == "delete"


def test_what_nobody_may_keep_is_in_no_log(target: Target, tmp_path: Path) -> None:
    """The pod itself says nothing; the answer is that of a process which runs beside."""
    assert remote.run_unlogged(target, ["dead", "show", "--", "iris", "2/7"], timeout=5) == "told by exec\n"
    spec = json.loads((tmp_path / "pod").read_text())["spec"]
    assert spec["containers"][0]["command"] == ["sleep", "5"]
    assert asked(tmp_path) == ["get", "create", "wait", "exec", "delete"]
    assert (tmp_path / "asked").read_text().splitlines()[3].endswith(" -- levada dead show -- iris 2/7")


@pytest.mark.parametrize(
    ("command", "way"), [("show iris 2/7", "exec"), ("list iris", "the log"), ("replay iris 2/7", "the log")]
)
def test_of_the_commands_about_letters_one_prints_values(
    target: Target, command: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEVADA_KAFKA__BOOTSTRAP", raising=False)
    monkeypatch.setattr(line, "_target", lambda *_: target)
    assert CliRunner().invoke(app, ["dead", *command.split()]).output == f"told by {way}\n"


def test_why_it_failed_is_told_and_the_pod_is_gone(target: Target, tmp_path: Path) -> None:
    (tmp_path / "refuses").touch()
    with pytest.raises(LineError, match="it holds no letter"):
        remote.run_unlogged(target, ["dead", "show", "--", "iris", "2/7"], timeout=5)
    assert asked(tmp_path)[-1] == "delete"
