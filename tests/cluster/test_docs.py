"""Every `sh` block of the README and the tutorial is run, in order, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from levada.line import install

from .conftest import NAME, Line

PAGES = ("README.md", "docs/tutorial/your-own-pipeline.md")


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_work(line: Line, page: str) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", (install.ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=install.ROOT, env={**os.environ, "LEVADA_CLUSTER": NAME}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
