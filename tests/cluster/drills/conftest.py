"""A line of its own for the drills: three nodes in three zones, three brokers, and nothing behind the lake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from levada.line import install

from ..conftest import Line, installed

VALUES = (
    install.ROOT / "values" / "profiles" / "nano.yaml",
    install.ROOT / "examples" / "drill" / "values.yaml",
    Path(__file__).with_name("values.yaml"),
)


@pytest.fixture(scope="package")
def line() -> Iterator[Line]:
    """The line that the drills break."""
    with installed("levada-drill-test", VALUES, nodes=3) as made:
        yield made
