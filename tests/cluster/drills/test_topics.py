"""A topic that is deleted and made again under a line that has read it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from levada.line.drill import Plan

from ..conftest import Line, wait_for
from .conftest import as_admin, drill, levada, settled, sink_metrics

DELETE = """
import json, sys
from confluent_kafka.admin import AdminClient
from levada.config import settings
admin = AdminClient(settings().kafka.client())
# A broker that has lost its controller's machine without a word asks it for 30 s more before it asks the next.
admin.delete_topics(sys.argv[1:], request_timeout=90)[sys.argv[1]].result(90)
print(json.dumps(sys.argv[1:]))
"""


def renew(line: Line, topic: str) -> None:
    """Delete a topic as its administrator, and have the release make it again."""
    as_admin(line, DELETE, topic)
    assert f"topic {topic}" in levada(line, "topics", "apply")


def sample(line: Line, pipeline: str, name: str) -> int:
    """The sum of a metric over a pipeline's sinks."""
    return sum(sums[name] for sums in sink_metrics(line, pipeline).values())


@pytest.mark.row(20)
def test_the_sink_stops_until_the_new_topic_is_accepted(line: Line, tmp_path: Path) -> None:
    before = settled(line)
    renew(line, "drill")
    wait_for(lambda: sample(line, "drill", "levada_sink_needs_operator") == 1, 60)
    event = {"writer": "w", "number": 1, "note": "of the new topic"}
    for _ in "abc":
        headers = {"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": str(uuid.uuid4())}
        # The collector answers 503 until it has seen the new topic; the same id again is one event.
        wait_for(lambda headers=headers: line.post("drill", json=event, headers=headers).status_code == 202, 60)
    log = line.kubectl("logs", "deployment/" + line.target.name("sink-drill"), "--container=sink", "--tail=20")
    assert "topic-replaced" in log
    assert "levada sink --accept" in log
    assert line.rows("drill") == before  # nothing is read before somebody has decided
    line.exec("deployment/" + line.target.name("sink-drill"), "levada", "sink", "--accept", container="sink")
    wait_for(lambda: line.rows("drill") == before + 3, 60)
    assert sample(line, "drill", "levada_sink_needs_operator") == 0


@pytest.mark.row(20)
def test_the_sink_goes_on_with_the_new_topic(line: Line, tmp_path: Path) -> None:
    assert drill(line, Plan(events=2000, faults=0, seed=5), tmp_path, "renewed").good
    before = settled(line, "renewed")
    renew(line, "renewed")
    assert drill(line, Plan(events=2000, faults=0, seed=6), tmp_path, "renewed").good
    assert settled(line, "renewed") == before + 2000
    assert sample(line, "renewed", "levada_sink_topic_replaced_total") == 1
    log = line.kubectl("logs", "deployment/" + line.target.name("sink-renewed"), "--container=sink")
    assert "says to read the new one from its beginning" in log
