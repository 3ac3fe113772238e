"""Every `sh` block of these pages is run, in order, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from levada.line import install

from .conftest import NAME, Line

PAGES = (
    "README.md",
    "docs/tutorial/your-own-pipeline.md",
    "docs/how-to/send-events.md",
    "docs/how-to/send-files.md",
    "docs/how-to/predict.md",
    "docs/how-to/watch.md",
)


def commands(page: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (install.ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("champion")  # which `make up` leaves
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_work(line: Line, page: str, tmp_path: Path) -> None:
    blocks = commands(page)
    assert blocks
    # Who reads on has done what the README begins with.
    exports = [row for row in "".join(commands("README.md")).splitlines() if row.startswith("export ")]
    for entry in install.ROOT.iterdir():  # what a page writes stays out of the repository
        (tmp_path / entry.name).symlink_to(entry)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(exports + blocks)],
        cwd=tmp_path, env={**os.environ, "LEVADA_CLUSTER": NAME}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
