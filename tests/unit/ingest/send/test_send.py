"""Files to the real collector: every row once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from levada.ingest.send import Progress, SendError
from levada.ingest.send.client import Collector
from levada.ingest.send.rows import FileError
from levada.ingest.send.state import StateError
from tests.unit.ingest.collecting import API_KEY, Collecting
from tests.unit.ingest.kafka import MockKafka

from .conftest import Held, Send, write_csv


def refusals(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_there_once_with_its_values(tmp_path: Path, send_file: Send, held: Callable[[str], Held]) -> None:
    path, topic = write_csv(tmp_path / "f.csv", 4321, "é"), held("free")
    seen: list[Progress] = []
    summary = send_file(path, report=seen.append, in_flight=4)
    assert (summary.accepted, summary.refused, summary.sent_before) == (4321, 0, False)
    messages = topic.messages()
    assert sorted(json.loads(m.value())["n"] for m in messages) == list(range(4321))
    assert {json.loads(m.value())["note"] for m in messages} == {"é"}
    assert len(set(topic.ids())) == 4321
    assert [each.read for each in seen] == sorted(each.read for each in seen)
    assert seen[-1].read == seen[-1].size == path.stat().st_size
    assert not summary.refusals.exists()
    again = send_file(path)
    assert (again.accepted, again.sent_before) == (4321, True)
    assert len(topic.messages()) == 4321


@pytest.mark.row(5, process=True, part="levada send")
def test_what_is_sent_again_has_the_ids_it_had(tmp_path: Path, send_file: Send, held: Callable[[str], Held]) -> None:
    """Again, from a copy, in requests of other sizes: each row's id is the same. Another pipeline has other ids."""
    path, topic, other = write_csv(tmp_path / "f.csv", 2500), held("free"), held("other")
    send_file(path)
    first = {json.loads(m.value())["n"]: dict(m.headers())["event-id"] for m in topic.messages()}
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "g.csv"
    shutil.copyfile(path, copy)
    os.utime(copy, (1, 1))
    send_file(path, again=True, batch=333)
    send_file(copy, batch=77, in_flight=3)
    found = [(json.loads(m.value())["n"], dict(m.headers())["event-id"]) for m in topic.messages()]
    assert Counter(found) == Counter(dict.fromkeys(first.items(), 3))
    assert len(set(first.values())) == 2500
    send_file(copy, "other")
    assert set(other.ids()) & set(topic.ids()) == set()


def test_a_changed_file_is_another_file(tmp_path: Path, send_file: Send, held: Callable[[str], Held]) -> None:
    path, topic = write_csv(tmp_path / "f.csv", 10), held("free")
    send_file(path)
    with path.open("a") as file:
        file.write("10,u,\n")
    assert send_file(path).accepted == 11
    assert len(set(topic.ids())) == 21


@pytest.mark.row(12, process=True, part="levada send")
def test_rows_with_one_key_keep_their_order(tmp_path: Path, send_file: Send, held: Callable[[str], Held]) -> None:
    path, topic = write_csv(tmp_path / "f.csv", 5000), held("keyed")
    send_file(path, "keyed", batch=300)
    of: dict[bytes, list[int]] = {}
    for message in topic.messages():
        of.setdefault(message.key(), []).append(json.loads(message.value())["n"])
    assert len(of) == 97
    assert all(numbers == sorted(numbers) for numbers in of.values())


def test_refused_rows_are_named_with_their_reason(tmp_path: Path, send_file: Send, held: Callable[[str], Held]) -> None:
    path, topic = tmp_path / "f.csv", held("free")
    lines = ["n,user,note", *(f"{n},u," for n in range(1500))]
    lines[1], lines[700], lines[1400], lines[1500] = "-1,u,", "many,,", "7,u", f"1,u,{'x' * 30_000}"
    path.write_text("\n".join(lines))
    summary = send_file(path)
    assert (summary.accepted, summary.refused) == (1496, 4)
    first, second, third, fourth = refusals(summary.refusals)
    assert (first["row"], first["status"]) == (1, 422)
    assert first["errors"] == [{"field": "n", "rule": "n >= 0", "message": "breaks the rule n >= 0"}]
    assert (second["row"], [error["field"] for error in second["errors"]]) == (700, ["n", "user"])
    assert (third["row"], third["reason"]) == (1400, "has 2 columns, the header has 3")
    assert (fourth["row"], fourth["status"]) == (1500, 413)
    assert len(topic.messages()) == 1496
    assert "many" not in summary.refusals.read_text()  # values may be secrets


def test_refusals_of_a_run_that_ended_early_are_kept_once(tmp_path: Path, send_file: Send) -> None:
    path = tmp_path / "f.csv"
    path.write_text("n,user\n" + "-1,u\n" * 200)

    def end(now: Progress) -> None:
        if now.refused >= until:  # several batches within the time between two saved positions
            raise SendError("ended")

    found = tmp_path / "f.csv.free.refused.ndjson"
    for until in (60, 80):
        with pytest.raises(SendError, match=f"0 rows are accepted, {until} refused"):
            send_file(path, batch=20, report=end)
        assert [each["row"] for each in refusals(found)] == list(range(1, until + 1))
        with found.open("a") as file:
            file.write('{"row": 61, "status": 4')  # of a run that was killed behind its last saved position
    assert send_file(path, batch=20).refused == 200
    assert [each["row"] for each in refusals(found)] == list(range(1, 201))


def test_refusals_that_are_gone_are_not_passed_over(tmp_path: Path, send_file: Send) -> None:
    path = tmp_path / "f.csv"
    path.write_text("n,user\n" + "-1,u\n" * 40)

    def end(now: Progress) -> None:
        raise SendError("ended")

    with pytest.raises(SendError, match="20 refused"):
        send_file(path, batch=20, report=end)
    (tmp_path / "f.csv.free.refused.ndjson").unlink()
    with pytest.raises(FileError, match=r"lacks rows that were refused before: put it back, or .* --again"):
        send_file(path)
    assert len(refusals(send_file(path, again=True).refusals)) == 40


def test_each_pipeline_has_its_own_refusals_of_one_file(tmp_path: Path, send_file: Send) -> None:
    path = tmp_path / "f.csv"
    path.write_text("n,user\n-1,u\n2,u\n")
    first = send_file(path, "free").refusals
    second = send_file(path, "other").refusals
    assert first != second
    assert len(refusals(first)) == len(refusals(second)) == 1


def test_ndjson_and_parquet(tmp_path: Path, send_file: Send, held: Callable[[str], Held]) -> None:
    topic = held("free")
    lines = tmp_path / "f.ndjson"
    lines.write_text("\n".join(json.dumps({"n": n, "user": "u"}) for n in range(1200)) + "\n\n{\n")
    summary = send_file(lines)
    assert (summary.accepted, summary.refused) == (1200, 1)
    assert [(each["line"], each["status"]) for each in refusals(summary.refusals)] == [(1202, 400)]
    table = tmp_path / "f.parquet"
    pq.write_table(pa.table({"user": ["u"] * 1300, "n": range(1200, 2500)}), table, row_group_size=500)
    assert send_file(table).accepted == 1300
    assert sorted(json.loads(m.value())["n"] for m in topic.messages()) == list(range(2500))


def test_a_request_that_is_too_large_is_cut(tmp_path: Path, send_file: Send, held: Callable[[str], Held]) -> None:
    """The collector takes 400 kB in a request, and these are 700."""
    path, topic = write_csv(tmp_path / "f.csv", 1000, "x" * 650), held("free")
    assert send_file(path).accepted == 1000
    ids = topic.ids()
    assert len(ids) == len(set(ids)) == 1000


@pytest.mark.row(7, process=True, part="levada send")
def test_kafka_away_for_a_while(tmp_path: Path, send_file: Send, held: Callable[[str], Held], kafka: MockKafka) -> None:
    path, topic = write_csv(tmp_path / "f.csv", 30_000), held("free")

    def hold_once(now: Progress) -> None:
        if now.accepted >= 5000 and not released:
            kafka.hold()
            released.append(threading.Timer(4, kafka.go_on))
            released[0].start()

    released: list[threading.Timer] = []
    assert send_file(path, report=hold_once, in_flight=2).accepted == 30_000
    released[0].join()
    rows = Counter(json.loads(m.value())["n"] for m in topic.messages())
    ids = Counter(topic.ids())
    assert len(rows) == len(ids) == 30_000  # what came twice came under one id
    assert sorted(rows.values()) == sorted(ids.values())


def test_giving_up_and_going_on(tmp_path: Path, send_file: Send, held: Callable[[str], Held], kafka: MockKafka) -> None:
    path, topic = write_csv(tmp_path / "f.csv", 6000), held("free")

    def hold(now: Progress) -> None:
        if now.accepted >= 2000:
            kafka.hold()

    begin = time.monotonic()
    with pytest.raises(SendError, match=r"no row was answered for .* To go on where it stopped, run the same command"):
        send_file(path, report=hold, patience=3)
    assert time.monotonic() - begin < 15
    kafka.go_on()
    summary = send_file(path)
    assert (summary.accepted, summary.refused) == (6000, 0)
    assert len(set(topic.ids())) == 6000


def test_the_collector_away_for_a_while(
    tmp_path: Path, send_file: Send, held: Callable[[str], Held], collector: Collecting
) -> None:
    path, topic = write_csv(tmp_path / "f.csv", 20_000), held("free")
    restarted: list[threading.Thread] = []

    def stop_once(now: Progress) -> None:
        if now.accepted >= 5000 and not restarted:
            collector.stop()
            restarted.append(threading.Thread(target=collector.start))
            restarted[0].start()

    assert send_file(path, report=stop_once).accepted == 20_000
    restarted[0].join()
    assert len(set(topic.ids())) == 20_000


def test_nothing_is_sent_behind_what_was_given_up(collector: Collecting, held: Callable[[str], Held]) -> None:
    """A thread that is free takes the next rows before the main thread has seen that it failed with the last ones."""
    topic, keys = held("keyed"), ["wrong", API_KEY]
    client = Collector(
        lambda: collector.url, lambda: keys.pop(0), "keyed", connections=1, patience=9, stop=threading.Event()
    )
    for first in (0, 1):
        with pytest.raises(SendError, match="answers 401"):
            client.deliver("key", first, [b'{"n": 1, "user": "u"}'])
    client.close()
    assert topic.messages() == []


@pytest.mark.parametrize(("key", "message"), [("wrong", "answers 401.*give the right key with --key-file")])
def test_what_waiting_does_not_mend_ends_at_once(tmp_path: Path, send_file: Send, key: str, message: str) -> None:
    path = write_csv(tmp_path / "f.csv", 10)
    begin = time.monotonic()
    with pytest.raises(SendError, match=message):
        send_file(path, key=key)
    assert time.monotonic() - begin < 5
    assert send_file(path).accepted == 10


def test_a_broken_state_says_what_to_do(tmp_path: Path, send_file: Send) -> None:
    path = write_csv(tmp_path / "f.csv", 10)
    (tmp_path / "f.csv.free.sent.json").write_text("{")
    with pytest.raises(StateError, match="delete it to begin anew"):
        send_file(path)


def test_two_at_once_are_refused(tmp_path: Path, send_file: Send) -> None:
    path = write_csv(tmp_path / "f.csv", 10)
    seen: list[str] = []

    def second(_: Progress) -> None:
        with pytest.raises(FileError, match="is being sent already") as error:
            send_file(path)
        seen.append(str(error.value))

    send_file(path, report=second)
    assert seen


def test_the_state_may_be_elsewhere(tmp_path: Path, send_file: Send) -> None:
    path = tmp_path / "f.csv"
    path.write_text("n,user\n-1,u\n")
    (tmp_path / "data").mkdir()
    path = path.rename(tmp_path / "data" / "f.csv")
    summary = send_file(path, folder=tmp_path / "state")
    assert summary.refusals.parent == tmp_path / "state"
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["f.csv"]
    with pytest.raises(FileError, match="say what it is with --format"):
        send_file(path.rename(tmp_path / "data" / "f.txt"))


def test_two_files_of_one_name_have_a_state_each(tmp_path: Path, send_file: Send) -> None:
    paths = [tmp_path / folder / "f.csv" for folder in ("here", "there")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_text(f"n,user\n-{number + 1},u\n")
    first, second = (send_file(path, folder=tmp_path / "state") for path in paths)
    assert first.refusals != second.refusals
    assert all(send_file(path, folder=tmp_path / "state").sent_before for path in paths)
