"""From an HTTP event to an HTTP prediction, as the demo command does it."""

from __future__ import annotations

import pytest

from .conftest import Line


@pytest.mark.row(66)
@pytest.mark.row(37)
def test_first_run_promotes_and_serves_what_it_trained(line: Line) -> None:
    before = restarts(line)
    report = line.demo()
    assert report.outcome["outcome"] == "promoted"
    assert report.version == report.outcome["version"] == report.outcome["champion"]
    assert report.outcome["value"] >= 0.93
    assert report.correct >= 0.93 * report.rows
    assert restarts(line) == before


def test_running_it_again_is_safe(line: Line) -> None:
    first, second = line.demo(), line.demo()
    # The same rows again: the same table, a tie, and the champion stays.
    assert second.outcome["outcome"] == "kept"
    assert second.version == first.version == second.outcome["champion"]
    assert line.rows("iris") == 150


def restarts(line: Line) -> dict[str, int]:
    """Restarts by pod; also fails on a pod that is pending or was killed for its memory."""
    counts = {}
    for name, pod in line.pods().items():
        assert pod["status"]["phase"] != "Pending", name
        for status in pod["status"].get("containerStatuses", []):
            assert "OOMKilled" not in str(status), name
            counts[f"{name}/{status['name']}"] = status["restartCount"]
    return counts
