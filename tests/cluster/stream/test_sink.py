"""From Kafka to the lake on an installed line: what was acknowledged is there once, what was refused is kept."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from levada.line import install
from levada.line.demo import lake_state, read_rows
from levada.line.target import LineError

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

LAKE = """
import json, sys
from levada import lake
from levada.config import settings
table = lake.catalog(settings()).load_table(("events", "iris"))
rows = table.scan(selected_fields=("_event_id", "_event_time", "_partition", "_offset")).to_arrow()
hours = {row["partition"]["_event_time_hour"]: row["record_count"] for row in table.inspect.partitions().to_pylist()}
summary = table.current_snapshot().summary.additional_properties
print(json.dumps({
    "ids": rows["_event_id"].to_pylist(),
    "places": list(zip(rows["_partition"].to_pylist(), rows["_offset"].to_pylist())),
    "hours": hours,
    "of_rows": [int(time.timestamp() // 3600) for time in rows["_event_time"].to_pylist()],
    "offsets": json.loads(summary["levada.offsets"]),
}))
"""
# With Kafka's administrator, whose password comes on standard input: the line's clients may neither write what the
# collector would refuse under another client's name nor read dead letters.
ADMIN = """
import json, sys
from confluent_kafka import Consumer, Producer, TopicPartition
from levada.config import settings
given = json.loads(sys.stdin.read())
login = {"sasl.mechanism": "PLAIN", "sasl.username": given["username"], "sasl.password": given["password"]}
client = {**settings().kafka.client(), **login}
producer = Producer(client)
places, letters = [], []
def delivered(error, message):
    places.append((message.partition(), message.offset()))
for value in given["values"]:
    producer.produce("iris", value.encode(), headers=[("event-id", given["id"])], on_delivery=delivered)
producer.flush(20)
consumer = Consumer({**client, "group.id": "test", "auto.offset.reset": "earliest"})
dead = producer.list_topics("iris.dead", timeout=10).topics["iris.dead"]
consumer.assign([TopicPartition("iris.dead", partition, 0) for partition in dead.partitions])
for message in consumer.consume(100000, given["seconds"]):
    headers = {name: value.decode() for name, value in message.headers()}
    if headers["event-id"] == given["id"]:
        letters.append([message.value().decode(), headers])
print(json.dumps([places, letters]))
"""


def in_lake(line: Line) -> dict[str, Any]:
    out = line.exec("deployment/" + line.target.name("sink-iris"), "python3", "-c", LAKE)
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def as_admin(line: Line, event_id: str, values: list[str], seconds: float = 5) -> tuple[list[Any], list[Any]]:
    given = {
        "username": line.target.secret("kafka-admin", "username"),
        "password": line.target.secret("kafka-admin", "password"),
        "id": event_id,
        "values": values,
        "seconds": seconds,
    }
    workload = "deployment/" + line.target.name("collector")
    out = line.kubectl("exec", "--stdin", workload, "--", "python3", "-c", ADMIN, stdin=json.dumps(given))
    places, letters = json.loads(out.strip().splitlines()[-1])
    return places, letters


def wait_for_lake(line: Line, ends: dict[int, int], timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            committed, _ = lake_state(line.target, "iris")
        except LineError:  # the sink is being replaced
            committed = {}
        if all(committed.get(partition, 0) >= end for partition, end in ends.items()):
            return
        assert time.monotonic() < deadline, f"not committed: {ends}, the table has {committed}"
        time.sleep(1)


@pytest.mark.row(25)
def test_every_acknowledged_event_is_one_row_while_the_sink_is_killed(line: Line) -> None:
    """A ledger of what was sent against the rows, by id and by place, with the sink killed in between."""
    declared = line.target.pipeline("iris")
    flowers = read_rows(install.ROOT / "examples" / "iris" / "iris.csv", declared)
    run, ledger, ends = uuid.uuid4().hex[:8], {}, dict[int, int]()
    for number, flower in enumerate(flowers):
        event_id = f"ledger-{run}-{number}"
        headers = {"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": event_id}
        for _ in range(1 if number % 10 else 2):  # every tenth is sent twice
            answer = line.post("iris", headers=headers, json=flower)
            assert answer.status_code == 202
            receipt = answer.json()
            ledger.setdefault(event_id, []).append([receipt["partition"], receipt["offset"]])
            ends[receipt["partition"]] = max(ends.get(receipt["partition"], 0), receipt["offset"] + 1)
        if number in (50, 100):
            pods = "app.kubernetes.io/component=sink,levada.io/pipeline=iris"
            line.kubectl("delete", "pod", "--selector", pods, "--grace-period=0", "--force")
    wait_for_lake(line, ends)
    found = in_lake(line)
    places = dict(zip(found["ids"], found["places"], strict=True))
    assert dict.fromkeys(ledger, 1) == {
        event_id: count for event_id, count in Counter(found["ids"]).items() if event_id in ledger
    }
    assert all(places[event_id] in sent for event_id, sent in ledger.items())
    assert max(Counter(found["ids"]).values()) == 1
    # Each hour of event time is a partition, and the snapshot names how far the topic is in it.
    assert {int(hour): count for hour, count in found["hours"].items()} == Counter(found["of_rows"])
    (topic,) = found["offsets"].values()
    assert all(topic[str(partition)]["next"] >= end for partition, end in ends.items())


@pytest.mark.row(17)
def test_bad_events_go_to_the_dead_letter_topic_and_the_stream_lives(line: Line) -> None:
    flower = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2, "species": "setosa"}
    bad = {
        "{": "json",
        "null": "json",
        json.dumps({**flower, "sepal_length": "5.1"}): "type",
        json.dumps({**flower, "colour": "blue"}): "unknown",
        json.dumps({**flower, "sepal_width": None}): "required",
        json.dumps({**flower, "species": "rose"}): "oneOf",
    }
    event_id = f"bad-{uuid.uuid4().hex[:8]}"
    places, _ = as_admin(line, event_id, list(bad), seconds=0.1)
    wait_for_lake(line, {partition: offset + 1 for partition, offset in sorted(places)})
    _, letters = as_admin(line, event_id, [])
    assert {value: headers["rule"] for value, headers in letters} == bad
    assert sorted((int(headers["partition"]), int(headers["offset"])) for _, headers in letters) == sorted(
        (partition, offset) for partition, offset in places
    )
    assert event_id not in in_lake(line)["ids"]
    answer = line.post(
        "iris", json=flower, headers={"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": "test-sink"}
    )
    receipt = answer.json()
    wait_for_lake(line, {receipt["partition"]: receipt["offset"] + 1})
    assert Counter(in_lake(line)["ids"])["test-sink"] == 1
