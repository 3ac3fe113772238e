"""Many events in one request: receipts, ids, order, bounds."""

from __future__ import annotations

import asyncio
import json
import re
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from levada.http.problem import Problem
from levada.ingest import collector as module
from levada.ingest.admission import Declared, Envelope
from levada.ingest.bulk import Batch, items_of, lines_of
from levada.ingest.producer import NotAcknowledged, Outcome, Receipt
from levada.pipeline import parse_pipeline

from .conftest import FIELDS
from .kafka import MockKafka

KEY = {"Authorization": "Bearer k-all"}
NDJSON = {**KEY, "Content-Type": "application/x-ndjson"}
JSON = {**KEY, "Content-Type": "application/json"}


def line(number: int = 1, user: str = "u") -> bytes:
    return json.dumps({"n": number, "user": user}).encode()


def post(client: httpx.Client, body: bytes, pipeline: str = "plain", **headers: str) -> httpx.Response:
    return client.post(f"/v1/{pipeline}/events", content=body, headers={**NDJSON, **headers})


def test_every_line_has_its_receipt(client: httpx.Client, kafka: MockKafka) -> None:
    body = b"\n".join((line(1), b"", b'{"n": 1', b"  " + line(2) + b"\r", line(101), b"[]", line(3, "x" * 10_000)))
    answer = post(client, body, **{"Idempotency-Key": "batch-1"})
    assert answer.status_code == 207, answer.text
    assert "retry-after" not in answer.headers
    found = answer.json()
    assert (found["batch"], found["acknowledged"]) == ("batch-1", 2)
    assert [(receipt["line"], receipt["status"]) for receipt in found["receipts"]] == [
        (1, 202), (3, 400), (4, 202), (5, 422), (6, 400), (7, 413),
    ]  # fmt: skip
    assert [receipt["event_id"] for receipt in found["receipts"]] == [f"batch-1-{n}" for n in (1, 3, 4, 5, 6, 7)]
    assert found["receipts"][3]["errors"][0]["field"] == "n"
    messages = {(m.partition(), m.offset()): m for m in kafka.messages("plain")}
    for receipt, value in ((found["receipts"][0], line(1)), (found["receipts"][2], line(2))):
        message = messages[receipt["partition"], receipt["offset"]]
        assert message.value() == value  # the bytes as they came
        assert dict(message.headers())["event-id"].decode() == receipt["event_id"]


@pytest.mark.row(5, part="the same ids, of which the sink keeps one row each")
def test_a_batch_again_has_the_same_ids(client: httpx.Client) -> None:
    whole = post(client, line(1) + b"\n" + line(2), **{"Idempotency-Key": "again"})
    assert whole.status_code == 202
    rest = post(client, b"\n" + line(2), **{"Idempotency-Key": "again"})  # blank lines keep the numbers
    assert rest.json()["receipts"][0]["event_id"] == whole.json()["receipts"][1]["event_id"] == "again-2"
    made = [post(client, line(1)).json() for _ in range(2)]
    assert made[0]["batch"] != made[1]["batch"]
    assert made[0]["receipts"][0]["event_id"] == f"{made[0]['batch']}-1"


def test_an_array_is_the_same(client: httpx.Client, kafka: MockKafka) -> None:
    items = [b'{ "n" :1,"user":"a}]{\\"[," }', line(2), line(101)]
    answer = client.post("/v1/plain/events", content=b" [\n" + b" ,\t".join(items) + b"]\r\n", headers=JSON)
    assert answer.status_code == 207
    receipts = answer.json()["receipts"]
    assert [(receipt["line"], receipt["status"]) for receipt in receipts] == [(1, 202), (2, 202), (3, 422)]
    messages = {(m.partition(), m.offset()): m for m in kafka.messages("plain")}
    assert messages[receipts[0]["partition"], receipts[0]["offset"]].value() == items[0]
    all_good = client.post("/v1/plain/events", json=[{"n": 1, "user": "u"}] * 3, headers=KEY)
    assert (all_good.status_code, all_good.json()["acknowledged"]) == (202, 3)


@pytest.mark.row(12, part="the lines of a batch")
def test_lines_keep_their_order(client: httpx.Client, kafka: MockKafka) -> None:
    body = b"\n".join(line(number % 100, f"user{number % 3}") for number in range(900))
    receipts = post(client, body, "keyed").json()["receipts"]
    for user in range(3):
        places = [(r["partition"], r["offset"]) for r in receipts if (r["line"] - 1) % 3 == user]
        assert len({partition for partition, _ in places}) == 1
        assert places == sorted(places)


REFUSED = {
    "too many lines": (413, NDJSON, b"\n" * 1001),
    "too many bytes": (413, NDJSON, b" " * 200_001),
    "too many items": (413, JSON, json.dumps([{}] * 1001).encode()),
    "array too large": (413, JSON, b"[" + b" " * 200_000 + b"]"),
    "no line": (400, NDJSON, b""),
    "blank lines": (400, NDJSON, b" \n\r\n"),
    "no item": (400, JSON, b"[]"),
    "cut array": (400, JSON, b'[{"n": 1, "user": "u"},'),
    "cut item": (400, JSON, b'[{"n": 1, "user": "u'),
    "behind the array": (400, JSON, b'[{"n": 1, "user": "u"}] []'),
    "nested": (400, JSON, b'[{"n": {"m": 1}}]'),
    "numbers": (400, JSON, b"[1, 2]"),
    "long key": (400, {**NDJSON, "Idempotency-Key": "x" * 51}, line()),
    "no key": (401, {"Content-Type": "application/x-ndjson"}, line()),
}


@pytest.mark.parametrize(("status", "headers", "body"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_as_a_whole(
    client: httpx.Client, kafka: MockKafka, status: int, headers: dict[str, str], body: bytes
) -> None:
    before = len(kafka.messages("plain"))
    answer = client.post("/v1/plain/events", content=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert len(kafka.messages("plain")) == before


def test_sealing_takes_what_there_is_room_for(client: httpx.Client, kafka: MockKafka) -> None:
    body = b"\n".join(b'{"user": "u", "pin": "%04d"}' % number for number in range(40))
    answer = post(client, body, "sealed")
    receipts = answer.json()["receipts"]
    assert [receipt["status"] for receipt in receipts] == [202] * 32 + [429] * 8
    assert answer.status_code == 207
    assert int(answer.headers["retry-after"]) >= 1
    assert len(kafka.messages("sealed")) == 32


PLAIN = Declared(parse_pipeline({"fields": FIELDS}, "p"), None)


def batch(outcomes: Iterator[Outcome]) -> Batch:
    """A batch whose outcomes are given, on a loop that runs."""

    def send(_: Envelope) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        future.set_result(next(outcomes))
        return future

    return Batch(PLAIN, "k", send, module._problem, max_line_bytes=1000, patience=0.1)


def test_after_a_line_that_was_not_acknowledged_none_is_begun() -> None:
    async def run() -> Batch:
        sent = iter([*[Receipt(0, n) for n in range(250)], NotAcknowledged("failed", ""), *[Receipt(0, 251)] * 10_000])
        found = batch(sent)
        await found.deliver(iter([(number, line()) for number in range(1, 3001)]))
        return found

    found = asyncio.run(run())
    statuses = [receipt["status"] for receipt in json.loads(found.answer())["receipts"]]
    assert statuses == [202] * 250 + [503] * 2750
    assert found.retry_after > 0


def test_a_line_that_is_given_up_ends_what_is_begun_behind_it() -> None:
    begun = 0

    async def run() -> Batch:
        loop = asyncio.get_running_loop()

        def send(_: Envelope) -> asyncio.Future[Outcome]:
            nonlocal begun
            begun += 1
            future: asyncio.Future[Outcome] = loop.create_future()
            if begun == 10:
                loop.call_soon(future.set_result, NotAcknowledged("failed", ""))
            else:
                future.set_result(Receipt(0, begun))
            return future

        found = Batch(PLAIN, "k", send, module._problem, max_line_bytes=1000, patience=0.1)
        await found.deliver(iter([(number, line()) for number in range(1, 3001)]))
        return found

    found = asyncio.run(run())
    assert begun == 200  # the chunk that was under way
    assert found.statuses == {202: 199, 503: 2801}


def test_a_full_queue_is_waited_for() -> None:
    async def run(outcomes: list[Outcome]) -> list[dict[str, Any]]:
        found = batch(iter(outcomes))
        await found.deliver(iter([(1, line()), (2, line())]))
        return json.loads(found.answer())["receipts"]

    full = NotAcknowledged("queue-full", "")
    assert [r["status"] for r in asyncio.run(run([full, full, Receipt(0, 1), Receipt(0, 2)]))] == [202, 202]
    assert [r["status"] for r in asyncio.run(run([full] * 1000))] == [503, 503]


@effort(deadline=None)
@given(st.lists(st.binary(max_size=20).filter(lambda text: b"\n" not in text)))
def test_lines_are_those_between_the_newlines(texts: list[bytes]) -> None:
    expected = [(n, text.strip(b" \t\r")) for n, text in enumerate(texts, 1) if text.strip(b" \t\r")]
    assert list(lines_of(b"\n".join(texts), 1000)) == expected


FLAT = st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text())))


@effort(deadline=None)
@given(st.lists(FLAT), st.sampled_from([None, 1]), st.booleans())
def test_items_are_those_of_the_array(items: list[dict[str, Any]], indent: int | None, ascii_: bool) -> None:
    body = json.dumps(items, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    if not items:
        with pytest.raises(Problem):
            items_of(body, 1000)
        return
    found = items_of(body, 1000)
    assert [number for number, _ in found] == list(range(1, len(items) + 1))
    assert [json.loads(raw.decode("utf-8", "surrogatepass")) for _, raw in found] == items


@effort(deadline=None, max_examples=300)
@given(st.one_of(st.binary(), st.text(alphabet='[]{}",:\\1 ').map(str.encode)))
def test_whatever_comes_is_taken_apart_or_refused(body: bytes) -> None:
    try:
        found = items_of(b"[" + body, 100)
    except Problem:
        return
    for _, raw in found:
        assert re.fullmatch(rb"\{.*\}", raw, re.DOTALL)


@pytest.mark.parametrize("body", [b'[{"a": "' + b"\\" * 4_000_000, b'[{"' * 1_000_000, b'[{"a": "' + b"x" * 4_000_000])
def test_taking_apart_needs_no_memory(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(Problem):
        items_of(body, 1000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_events_of_their_time(client: httpx.Client, kafka: MockKafka) -> None:
    now = datetime.now(UTC)
    cases = {
        timedelta(hours=-47): (202, None),
        timedelta(minutes=59): (202, None),
        timedelta(hours=-49): (422, "lateHorizon"),
        timedelta(minutes=61): (422, "maxAhead"),
    }
    for shift, (status, rule) in cases.items():
        moment = now + shift
        answer = client.post("/v1/timed/events", json={"at": moment.isoformat()}, headers=KEY)
        assert answer.status_code == status
        if rule is not None:
            [error] = answer.json()["errors"]
            assert (error["field"], error["rule"]) == ("at", rule)
            continue
        times = [dict(m.headers())["event-time"].decode() for m in kafka.messages("timed")]
        assert moment.isoformat() in times
