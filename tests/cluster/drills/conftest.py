"""A line of its own for the drills: three nodes in three zones, three brokers, and nothing behind the lake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from levada.line import install
from levada.line.drill import Drill, Plan, Result

from ..conftest import Line, installed, wait_for

_LOOKS = 12
VALUES = (
    install.ROOT / "values" / "profiles" / "nano.yaml",
    install.ROOT / "examples" / "drill" / "values.yaml",
    install.ROOT / "examples" / "orders" / "values.yaml",
    Path(__file__).with_name("values.yaml"),
)


@pytest.fixture(scope="package")
def line() -> Iterator[Line]:
    """The line that the drills break."""
    with installed("levada-drill-test", VALUES, nodes=3) as made:
        yield made


def drill(line: Line, plan: Plan, folder: Path, pipeline: str = "drill") -> Result:
    """One drill, its ledger printed."""
    result = Drill(
        line.target,
        line.target.pipeline(pipeline),
        plan,
        folder / "ledger.ndjson",
        lambda text: print(text, flush=True),
    ).run()
    print(result.render(), flush=True)
    return result


def sink_metrics(line: Line, pipeline: str) -> dict[str, Counter[str]]:
    """Pod → sum of each metric of its sink, over the labels."""
    pods = line.target.objects("pods", f"app.kubernetes.io/component=sink,levada.io/pipeline={pipeline}")
    found: dict[str, Counter[str]] = {}
    for pod in pods:
        name = pod["metadata"]["name"]
        sums = found[name] = Counter()
        for family in text_string_to_metric_families(line.target.pod_metrics(name)):
            for sample in family.samples:
                sums[sample.name] += int(sample.value)
    return found


def levada(line: Line, *arguments: str, code: int = 0, timeout: float = 300) -> str:
    """What a command of operators prints; it must end with this exit code."""
    assert line.target.cluster is not None
    command = [str(Path(sys.executable).with_name("levada")), *arguments, "--cluster", line.target.cluster.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    print(f"$ levada {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    assert done.returncode == code, done.stderr
    return done.stdout


def as_admin(line: Line, script: str, *arguments: str) -> Any:
    """What a script prints as JSON that runs as Kafka's administrator, in the container that looks after a broker."""
    pod = line.target.name("kafka") + "-0"
    return json.loads(line.kubectl("exec", pod, "--container=in-sync", "--", "python3", "-c", script, *arguments))


def settled(line: Line, pipeline: str = "drill") -> int:
    """Rows in the lake once none has come for longer than the two seconds between commits."""
    found = [-1]

    def unchanged() -> bool:
        found.append(line.rows(pipeline))
        return len(found) > _LOOKS and len(set(found[-_LOOKS:])) == 1

    wait_for(unchanged, 120)
    return found[-1]


"""Looks, half a second or more apart."""
