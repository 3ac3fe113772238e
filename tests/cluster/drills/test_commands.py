"""The commands of operators and senders, as they are typed, on a line of three brokers."""

from __future__ import annotations

import json
import math
import re
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
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
topic, event_id, event_time, value = sys.argv[1:]
headers = [("event-id", event_id), ("event-time", event_time)]
producer.produce(topic, value.encode(), headers=headers, on_delivery=delivered)
producer.flush(30)
print(json.dumps(places))
"""


RACKS = """
import json
from confluent_kafka.admin import AdminClient
from levada.config import settings
admin = AdminClient(settings().kafka.client())
print(json.dumps([node.rack for node in admin.describe_cluster().result(30).nodes]))
"""
# Upkeep as it is hours later, on a table that somebody has pinned and beside which objects lie that nothing names.
UPKEEP = """
import json, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from levada import lake
from levada.config import settings
from levada.pipeline import load_pipeline
from levada.stream.maintain import maintain

def stray(number):
    with table.io.new_output(f"{table.location()}/data/stray-{number}.parquet").create() as file:
        file.write(b"stray")

def look(snapshot=None):
    scan = catalog.load_table(pipeline.table).scan(snapshot_id=snapshot)
    ids = sorted(scan.to_arrow()["_event_id"].to_pylist())
    sizes = {}
    for task in scan.plan_files():
        sizes.setdefault(str(task.file.partition[0]), []).append(task.file.file_size_in_bytes)
    return ids, sizes

pipeline = load_pipeline(settings().pipelines, settings().pipeline)
catalog = lake.catalog(settings())
table = catalog.load_table(pipeline.table)
pinned = table.current_snapshot().snapshot_id
table.manage_snapshots().create_tag(pinned, f"pinned-{pinned}").commit()
with ThreadPoolExecutor(8) as pool:
    list(pool.map(stray, range(1200)))
ids, before = look()
first = maintain(catalog, pipeline, now=lambda: time.time() + 7 * 3600)
report = maintain(catalog, pipeline, now=lambda: time.time() + 24 * 3600)
now, after = look()
print(json.dumps({
    "waiting": first.waiting, "removed": report.removed, "before": before, "after": after, "rows": len(now),
    "same": now == ids == look(pinned)[0],
}))
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
    refused = '{"writer": "w", "number": -5, "note": "by hand"}'
    [place] = as_admin(line, PRODUCE, "drill", event_id, "2026-01-01T00:00:00Z", refused)
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


def test_brokers_know_their_zones(line: Line) -> None:
    assert sorted(as_admin(line, RACKS)) == ["a", "b", "c"]


@pytest.mark.row(23, part="the CronJob on the cluster")
def test_upkeep(line: Line) -> None:
    rows, name = settled(line), f"upkeep-{uuid.uuid4().hex[:8]}"
    line.kubectl("create", "job", name, "--from=cronjob/" + line.target.name("maintain-drill"))
    line.kubectl("wait", f"job/{name}", "--for=condition=Complete", "--timeout=120s", timeout=150)
    print(line.kubectl("logs", f"job/{name}"))
    assert settled(line) == rows


def has_rows(line: Line, count: int) -> bool:
    return line.rows("renewed") == count


@pytest.mark.row(23, part="in an object store and its catalog")
@pytest.mark.row(27)
def test_upkeep_makes_many_small_files_few_and_sees_every_object(line: Line) -> None:
    rows = settled(line, "renewed")
    ago = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    for number in range(6):
        as_admin(line, PRODUCE, "renewed", str(uuid.uuid4()), ago, '{"writer": "w", "number": 1, "note": "small"}')
        wait_for(partial(has_rows, line, rows + number + 1), 60)
    sink = "deployment/" + line.target.name("sink-renewed")
    said = line.exec(sink, "python3", "-c", UPKEEP, container="sink", timeout=300)
    found = json.loads(said.splitlines()[-1])  # upkeep has logged before
    print(found)
    assert max(len(sizes) for sizes in found["before"].values()) >= 6
    for sizes in found["after"].values():
        assert len(sizes) <= math.ceil(sum(sizes) / 2**26) + 1
    assert found["same"]
    assert found["waiting"] >= 1200
    assert found["removed"] >= 1200
