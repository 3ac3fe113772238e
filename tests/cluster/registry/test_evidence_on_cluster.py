"""What the registry holds after the line ran, and what a hand in it can do."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

POLL_SECONDS = 5.0 * 1.2


def versions(line: Line) -> dict[str, dict[str, str]]:
    """Tags of every version of iris, by version."""
    answer = httpx.get(
        f"{line.mlflow_url}/api/2.0/mlflow/model-versions/search",
        params={"filter": "name = 'iris'", "max_results": 1000},
        timeout=30,
    )
    found: list[dict[str, Any]] = answer.raise_for_status().json()["model_versions"]
    return {one["version"]: {tag["key"]: tag["value"] for tag in one["tags"]} for one in found}


def alias(line: Line) -> str:
    params = {"name": "iris", "alias": "champion"}
    answer = httpx.get(f"{line.mlflow_url}/api/2.0/mlflow/registered-models/alias", params=params, timeout=30)
    return str(answer.raise_for_status().json()["model_version"]["version"])


def set_alias(line: Line, version: str) -> None:
    body = {"name": "iris", "alias": "champion", "version": version}
    url = f"{line.mlflow_url}/api/2.0/mlflow/registered-models/alias"
    httpx.post(url, json=body, timeout=30).raise_for_status()


def served(line: Line) -> str:
    return str(httpx.get(f"{line.predictor_url('iris')}/version", timeout=30).raise_for_status().json()["version"])


def test_every_version_says_what_it_came_from(line: Line) -> None:
    report = line.demo()
    tags = versions(line)[report.outcome["version"]]
    assert json.loads(tags["levada.gate"]) == report.outcome
    assert tags["levada.snapshot"].isdigit()
    assert tags["levada.table"] == "events.iris"
    assert tags["levada.image"].endswith("@" + tags["levada.image.digest"])
    assert tags["levada.image.digest"].startswith("sha256:")
    assert {"levada.run", "levada.trainer", "levada.trainer.sha256", "levada.version", "levada.eval.sha256"} <= set(
        tags
    )


@pytest.mark.row(46)
def test_an_alias_moved_by_hand_changes_nothing_and_the_next_gate_puts_it_back(line: Line) -> None:
    kept = line.demo().outcome  # the same rows again: a tie
    assert kept["outcome"] == "kept"
    champion = kept["champion"]
    set_alias(line, kept["version"])
    time.sleep(2 * POLL_SECONDS)
    assert served(line) == champion
    metrics = httpx.get(f"{line.predictor_url('iris')}/metrics", timeout=30).text
    assert 'levada_model_refused_total{name="iris",reason="gate"} 1.0' in metrics

    # Neither does a process that starts only now believe the alias.
    line.kubectl("rollout", "restart", "deployment/levada-predictor-iris")
    line.kubectl("rollout", "status", "deployment/levada-predictor-iris", "--timeout=120s")
    assert served(line) == champion

    assert alias(line) == kept["version"]
    line.demo()
    assert alias(line) == champion
