"""The commands of operators and senders, as they are typed, on a line of three brokers."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import pytest

from ..conftest import Line, wait_for
from .conftest import VALUES, as_admin, levada, settled

PRODUCE = """
import json, sys
from confluent_kafka import Producer
from levada.config import settings
producer, places = Producer(settings().kafka.client()), []
def delivered(error, message):
    places.append(f"{message.partition()}/{message.offset()}")
for value in sys.argv[3:]:
    headers = [("event-id", sys.argv[2]), ("event-time", "2026-01-01T00:00:00Z")]
    producer.produce(sys.argv[1], value.encode(), headers=headers, on_delivery=delivered)
producer.flush(30)
print(json.dumps(places))
"""


def test_status_of_a_line_without_a_registry(line: Line) -> None:
    told = levada(line, "status")
    assert "kafka" in told
    assert "orders" in told


@pytest.mark.row(14, part="a CSV file on the cluster, sent twice")
def test_a_file_is_sent_once(line: Line, tmp_path: Path) -> None:
    rows, file = settled(line), tmp_path / "events.csv"
    file.write_text("writer,number,note\n" + "".join(f"w{n % 7},{n},by file\n" for n in range(5000)) + "w,-1,bad\n")
    assert "5000 rows accepted, 1 refused" in levada(line, "send", str(file), "--pipeline", "drill", code=1)
    wait_for(lambda: line.rows("drill") == rows + 5000, 60)
    levada(line, "send", str(file), "--pipeline", "drill", "--again", code=1)
    assert settled(line) == rows + 5000


@pytest.mark.row(6, part="on the cluster: set aside, listed, released, rejected")
def test_review(line: Line) -> None:
    rows, ids = settled(line, "vault"), [f"large-{uuid.uuid4()}" for _ in range(2)]
    for number, event_id in enumerate(ids):
        event = {"owner": "o", "code": "1" * 16, "card": f"{number:016}", "amount": 1001}
        headers = {"Authorization": f"Bearer {line.api_key}", "Idempotency-Key": event_id}
        answer = line.post("vault", json=event, headers=headers)
        assert (answer.status_code, answer.json()["review"]) == (202, True)
    listed = levada(line, "review", "list", "vault")
    assert all(re.search(rf"{each} +waiting .*large", listed) for each in ids)
    levada(line, "review", "release", "vault", ids[0], "--note", "asked by phone", "--by", "ann")
    levada(line, "review", "release", "vault", ids[0], code=1)  # a decision is final
    levada(line, "review", "reject", "vault", ids[1], "--by", "ann")
    wait_for(lambda: line.rows("vault") == rows + 1, 60)
    listed = levada(line, "review", "list", "vault", "--all")
    assert "released by ann" in listed
    assert "asked by phone" in listed
    assert "rejected by ann" in listed
    assert settled(line, "vault") == rows + 1


def test_dead_letters(line: Line) -> None:
    rows, event_id = settled(line), f"dead-{uuid.uuid4()}"
    [place] = as_admin(line, PRODUCE, "drill", event_id, '{"writer": "w", "number": -5, "note": "by hand"}')
    wait_for(lambda: event_id in levada(line, "dead", "list", "drill"), 60)
    listed = levada(line, "dead", "list", "drill", "--rule", "number >= 0")
    assert re.search(rf"{place} +{event_id} .*number: number >= 0", listed)
    shown = levada(line, "dead", "show", "drill", place)
    assert '"number": -5' in shown
    assert f"offset: {place.partition('/')[2]}" in shown
    assert "1 sent to topic drill again" in levada(line, "dead", "replay", "drill", place)
    assert f"{event_id}" in levada(line, "dead", "list", "drill")
    assert settled(line) == rows  # it is still wrong, and still no row


@pytest.mark.row(8, part="levada topics plan and apply on three brokers")
def test_topics(line: Line, tmp_path: Path) -> None:
    assert ", 0 refused" in levada(line, "topics", "plan")
    assert "0 to change" in levada(line, "topics", "plan")
    assert "+" not in levada(line, "topics", "apply")
    files = [argument for file in VALUES for argument in ("--values", str(file))]
    for partitions, code, word in ((6, 2, "+ topic drill: 3 → 6 partitions"), (2, 1, "! topic drill has 3 partitions")):
        change = tmp_path / f"{partitions}.yaml"
        change.write_text(json.dumps({"global": {"pipelines": {"drill": {"topic": {"partitions": partitions}}}}}))
        assert word in levada(line, "topics", "plan", *files, "--values", str(change), code=code)


@pytest.mark.row(23, part="the CronJob on the cluster")
def test_upkeep(line: Line) -> None:
    rows, name = settled(line), f"upkeep-{uuid.uuid4().hex[:8]}"
    line.kubectl("create", "job", name, "--from=cronjob/" + line.target.name("maintain-drill"))
    line.kubectl("wait", f"job/{name}", "--for=condition=Complete", "--timeout=120s", timeout=150)
    print(line.kubectl("logs", f"job/{name}"))
    assert settled(line) == rows
