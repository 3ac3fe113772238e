"""Programs that tests run and that a new machine may not have."""

from __future__ import annotations

import shutil

import pytest

from levada.cluster import Console, packages
from levada.cluster.errors import ClusterError


def need(program: str, *names: str) -> None:
    """Install the packages of a program that is missing; the test is skipped where that is not allowed."""
    if shutil.which(program) is None:
        try:
            packages.ensure(names, Console())
        except ClusterError as error:
            pytest.skip(f"no {program}: {error}")
