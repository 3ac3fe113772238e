"""The description is true, by what schemathesis finds out at the real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.unit.http.hostile import resident

from .conftest import FakeMlflow, model_file
from .predicting import API_KEY, Process

_MEMORY_MIB = 16


@pytest.mark.row(51, process=True, part="refusals")
def test_schemathesis_finds_nothing(tmp_path: Path, mlflow: FakeMlflow) -> None:
    mlflow.promote("1", model_file())
    process = Process(tmp_path, mlflow.uri)
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(httpx.get(f"{process.url}/openapi.json").json()))
    settings = tmp_path / "schemathesis.toml"
    # JSON Schema takes 1.0 for an integer, we do not; numbers may be too large for a model; and the tensors' names,
    # types and shapes depend on each other, which it cannot say.
    settings.write_text('[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "404", "422"]\n')
    before = resident(process.process.pid)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run", str(document)),
            *("--url", process.url, "--header", f"Authorization: Bearer {API_KEY}"),
            *("--checks", "all", "--exclude-checks", "use_after_free,ensure_resource_availability"),
            *("--max-examples", os.environ.get("LEVADA_EXAMPLES", "100"), "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    grown = resident(process.process.pid, "VmHWM") - before
    process.stop()
    print(f"memory +{grown:.1f} MiB")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert grown <= _MEMORY_MIB
