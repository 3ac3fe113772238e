"""What all layers share: the row marks of a test go into the run's report, from which ci/claims reads them."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Record each `row(N)` beside the test's id.

    `row(N, process=True)` is for a unit test that runs the real process, `row(N, part="…")` for a test that shows only
    a part of the row.
    """
    for item in items:
        test = item.nodeid.split("[")[0]
        for mark in item.iter_markers("row"):
            level = "process" if mark.kwargs.get("process") else test.split("/")[1]
            item.user_properties.append(("row", f"{mark.args[0]} {level} {test} {mark.kwargs.get('part', '')}"))
