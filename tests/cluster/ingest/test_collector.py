"""The collector of an installed line, over HTTP and from inside Kafka."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

GOOD: dict[str, Any] = {
    "sepal_length": 5.1,
    "sepal_width": 3.5,
    "petal_length": 1.4,
    "petal_width": 0.2,
    "species": "setosa",
}
# Where a topic ends, and what happens to one that does not exist, asked with the collector's own user.
ENDS = """
import json, sys
from confluent_kafka import Consumer, Producer, TopicPartition
from levada.config import settings
producer = Producer({**settings().kafka.client(), "allow.auto.create.topics": False, "message.timeout.ms": 5000})
if sys.argv[1] == "produce":
    errors = []
    producer.produce(sys.argv[2], b"{}", on_delivery=lambda error, _: errors.append(error and error.name()))
    producer.flush(10)
    print(json.dumps([errors, sorted(producer.list_topics(timeout=10).topics)]))
else:
    consumer = Consumer({**settings().kafka.client(), "group.id": "unused"})
    parts = producer.list_topics(sys.argv[2], timeout=10).topics[sys.argv[2]].partitions
    places = [TopicPartition(sys.argv[2], part) for part in sorted(parts)]
    print(json.dumps([consumer.get_watermark_offsets(place, timeout=10)[1] for place in places]))
"""


def in_collector(line: Line, *arguments: str) -> Any:
    out = line.exec("deployment/" + line.target.name("collector"), "python3", "-c", ENDS, *arguments)
    return json.loads(out.strip().splitlines()[-1])


def test_each_refusal_is_exact_and_nothing_is_produced(line: Line) -> None:
    before = in_collector(line, "ends", "iris")
    right = {"Authorization": f"Bearer {line.api_key}"}
    as_json = {**right, "Content-Type": "application/json"}
    cases: list[tuple[int, str, dict[str, Any], list[str]]] = [
        (401, "iris", {"headers": {}, "json": GOOD}, []),
        (401, "iris", {"headers": {"Authorization": "Bearer nobody"}, "json": GOOD}, []),
        (404, "nobody", {"json": GOOD}, []),
        (415, "iris", {"headers": right, "content": b"{}"}, []),
        (400, "iris", {"headers": as_json, "content": b'{"sepal_length": 5.1'}, [""]),
        (413, "iris", {"headers": as_json, "content": b" " * 20_000_000}, []),
        (422, "iris", {"json": {**GOOD, "sepal_length": "5.1"}}, ["sepal_length"]),
        (422, "iris", {"json": {**GOOD, "sepal_length": 31}}, ["sepal_length"]),
        (422, "iris", {"json": {**GOOD, "species": "rose"}}, ["species"]),
        (422, "iris", {"json": {**GOOD, "colour": "blue"}}, ["colour"]),
        (422, "iris", {"json": {"species": "setosa"}}, sorted(GOOD.keys() - {"species"})),
    ]
    for status, pipeline, options, fields in cases:
        answer = line.post(pipeline, **options)
        assert (answer.status_code, sorted(e["field"] for e in answer.json()["errors"])) == (status, fields)
        assert answer.headers["content-type"] == "application/problem+json"
    assert in_collector(line, "ends", "iris") == before


@pytest.mark.row(9)
def test_an_unknown_topic_is_refused_and_not_made(line: Line) -> None:
    errors, topics = in_collector(line, "produce", "never-declared")
    assert errors
    assert None not in errors
    assert "never-declared" not in topics
    assert "iris" in topics


def test_an_accepted_event_is_acknowledged_at_its_place(line: Line) -> None:
    # The same id each time: however often this runs, the lake gains one row.
    headers = {"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": "test-collector"}
    answer: httpx.Response = line.post("iris", headers=headers, json=GOOD)
    assert answer.status_code == 202
    receipt = answer.json()
    assert receipt["event_id"] == "test-collector"
    assert in_collector(line, "ends", "iris")[receipt["partition"]] > receipt["offset"]
