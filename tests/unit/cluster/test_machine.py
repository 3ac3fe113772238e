"""The first process of a machine, run as a plain process: without root there are no namespaces to make."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from levada.cluster.machines import SCRIPT as MACHINE
from levada.cluster.machines import python


def wait_for_text(path: Path, text: str) -> None:
    deadline = time.monotonic() + 10
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{path} does not say {text!r}"
        time.sleep(0.05)


def test_programs_are_started_again_and_ended_well(tmp_path: Path) -> None:
    spec = tmp_path / "machine.json"
    steady = "trap 'echo ended; exit 0' TERM; echo started; while :; do sleep 0.1; done"
    programs = {"short": ["sh", "-c", "echo again; exit 3"], "steady": ["sh", "-c", steady]}
    spec.write_text(
        json.dumps({"programs": programs, "setup": [["touch", str(tmp_path / "mounted")]], "logs": str(tmp_path)})
    )
    with subprocess.Popen([*python(MACHINE), str(spec)], stdout=subprocess.PIPE, text=True) as machine:
        wait_for_text(tmp_path / "short.log", "again\nagain\n")
        wait_for_text(tmp_path / "steady.log", "started")
        machine.terminate()
        told, _ = machine.communicate(timeout=20)
    assert machine.returncode == 0
    assert (tmp_path / "mounted").exists()
    assert "short ended with status 3" in told
    assert (tmp_path / "steady.log").read_text() == "started\nended\n"


def test_a_mount_that_fails_keeps_the_machine_from_starting(tmp_path: Path) -> None:
    spec = tmp_path / "machine.json"
    spec.write_text(json.dumps({"programs": {}, "setup": [["false"]], "logs": str(tmp_path)}))
    done = subprocess.run([*python(MACHINE), str(spec)], capture_output=True, check=False, timeout=20)
    assert done.returncode != 0
