"""Running code where the models are made: a pod of the trainer image, with what a training pod may do."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

InTrainer = Callable[[str], Any]


@pytest.fixture
def in_trainer(line: Line) -> InTrainer:
    """Run Python code for the iris pipeline in a trainer pod; the JSON in its last line of output."""

    def run(code: str) -> Any:
        template = json.loads(line.kubectl("get", "configmap", "levada-trainer", "-o", "json"))["data"]["pod.yaml"]
        pod = yaml.safe_load(template)
        name = f"test-{uuid.uuid4().hex[:8]}"
        pod["metadata"]["name"] = name
        container = pod["spec"]["containers"][0]
        container["command"] = ["python", "-c", code]
        container["env"] = [*container.get("env", []), {"name": "LEVADA_PIPELINE", "value": "iris"}]
        line.kubectl("create", "-f", "-", stdin=json.dumps(pod))
        try:
            line.kubectl(
                "wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=240s", timeout=260
            )
        finally:
            log = line.kubectl("logs", name)
            line.kubectl("delete", "pod", name, "--wait=false")
            print(log)
        return json.loads(log.strip().splitlines()[-1])

    return run
