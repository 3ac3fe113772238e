"""The collector over real HTTP and librdkafka's mock cluster: every answer, and what is in the topic after it."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from levada.config import Settings, required
from levada.ingest import collector as module
from levada.ingest import reload
from levada.ingest.collector import Collector
from levada.ingest.reload import Declarations

from .conftest import digest, wait_until
from .kafka import MockKafka

KEY = {"Authorization": "Bearer k-all"}
GOOD = {"n": 1, "user": "u1"}


def count(pipeline: str, status: int) -> float:
    labels = {"pipeline": pipeline, "status": str(status)}
    return REGISTRY.get_sample_value("levada_collector_requests_total", labels) or 0.0


def test_an_accepted_event_is_in_the_topic(client: httpx.Client, kafka: MockKafka) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    body = b' {"user": "u\xc3\xa9",   "n": 7}'
    answer = client.post("/v1/plain/events", content=body, headers={**KEY, "Content-Type": "application/json"})
    assert answer.status_code == 202
    receipt = answer.json()
    message = next(
        m for m in kafka.messages("plain") if (m.partition(), m.offset()) == (receipt["partition"], receipt["offset"])
    )
    headers = {name: value.decode() for name, value in message.headers()}
    assert message.value() == body  # the bytes as they came
    assert message.key().decode() == headers["event-id"] == receipt["event_id"]
    assert str(UUID(headers["event-id"], version=4)) == headers["event-id"]
    assert (headers["pipeline"], headers["schema"]) == ("plain", "1")
    assert before < datetime.fromisoformat(headers["event-time"]) <= datetime.now(UTC)
    assert headers["event-time"].endswith("+00:00")


def test_key_and_event_id_are_the_client_s(client: httpx.Client, kafka: MockKafka) -> None:
    for _ in range(2):
        answer = client.post(
            "/v1/keyed/events", json=GOOD, headers={"Authorization": "bearer k-one", "Idempotency-Key": "order-17"}
        )
        assert (answer.status_code, answer.json()["event_id"]) == (202, "order-17")
    first, second = kafka.messages("keyed")
    assert first.key() == second.key() == b"u1"
    assert first.partition() == second.partition()
    assert dict(first.headers())["event-id"] == b"order-17"


JSON = {**KEY, "Content-Type": "application/json"}
REFUSED = {
    "no key": (401, "plain", {"headers": {}, "json": GOOD}, []),
    "unknown key": (401, "plain", {"headers": {"Authorization": "Bearer nobody"}, "json": GOOD}, []),
    "not a bearer": (401, "plain", {"headers": {"Authorization": "Basic k-all"}, "json": GOOD}, []),
    "two types": (
        400,
        "plain",
        {"headers": [*KEY.items(), *[("Content-Type", "application/json")] * 2], "content": b"{}"},
        [],
    ),
    "two keys": (401, "plain", {"headers": [("Authorization", "Bearer k-all")] * 2, "json": GOOD}, []),
    "key of another pipeline": (403, "plain", {"headers": {"Authorization": "Bearer k-one"}, "json": GOOD}, []),
    "unknown pipeline": (404, "nobody", {"headers": KEY, "json": GOOD}, []),
    "disabled pipeline": (404, "off", {"headers": KEY, "json": GOOD}, []),
    "no content type": (415, "plain", {"headers": KEY, "content": b"{}"}, []),
    "form": (415, "plain", {"headers": KEY, "data": {"n": "1"}}, []),
    "gzip": (415, "plain", {"headers": {**JSON, "Content-Encoding": "gzip"}, "content": b"x"}, []),
    "event id too long": (
        400,
        "plain",
        {"headers": {**KEY, "Idempotency-Key": "x" * 65}, "json": GOOD},
        ["Idempotency-Key"],
    ),
    "event id with space": (
        400,
        "plain",
        {"headers": {**KEY, "Idempotency-Key": "a b"}, "json": GOOD},
        ["Idempotency-Key"],
    ),
    "empty": (400, "plain", {"headers": JSON, "content": b""}, [""]),
    "broken": (400, "plain", {"headers": JSON, "content": b'{"n": 1'}, [""]),
    "NaN": (400, "plain", {"headers": JSON, "content": b'{"n": NaN}'}, [""]),
    "not UTF-8": (400, "plain", {"headers": JSON, "content": b'{"user": "\xff"}'}, [""]),
    "an array": (400, "plain", {"headers": JSON, "content": b"[]"}, [""]),
    "deep": (400, "plain", {"headers": JSON, "content": b"[" * 9_999}, [""]),
    "wrong type": (422, "plain", {"headers": KEY, "json": {**GOOD, "n": "1"}}, ["n"]),
    "out of rule": (422, "plain", {"headers": KEY, "json": {**GOOD, "n": 101}}, ["n"]),
    "unknown field": (422, "plain", {"headers": KEY, "json": {**GOOD, "m": 1}}, ["m"]),
    "missing field": (422, "plain", {"headers": KEY, "json": {"n": 1}}, ["user"]),
    "null": (422, "plain", {"headers": KEY, "json": {"n": None, "user": None}}, ["n", "user"]),
}


@pytest.mark.row(2, part="every reason, by field and rule")
@pytest.mark.parametrize(("status", "pipeline", "request_", "fields"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_field_and_nothing_produced(
    client: httpx.Client, kafka: MockKafka, status: int, pipeline: str, request_: dict[str, object], fields: list[str]
) -> None:
    before = len(kafka.messages("plain"))
    counted = count(pipeline if pipeline == "plain" else "", status)
    answer = client.post(f"/v1/{pipeline}/events", **request_)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert [error["field"] for error in problem["errors"]] == fields
    assert all(error["rule"] and error["message"] for error in problem["errors"])
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    assert len(kafka.messages("plain")) == before
    assert count(pipeline if pipeline == "plain" else "", status) == counted + 1


def test_other_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/").status_code == 404
    answer = client.get("/v1/plain/events", headers=KEY)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_large_body_is_refused(client: httpx.Client, kafka: MockKafka) -> None:
    before = len(kafka.messages("plain"))
    assert client.post("/v1/plain/events", headers=JSON, content=b" " * 20_000_000).status_code == 413
    in_chunks = client.post("/v1/plain/events", headers=JSON, content=(b" " * 100_000 for _ in range(200)))
    assert in_chunks.status_code == 413
    assert client.post("/v1/plain/events", headers=JSON, content=_padded(10_001)).status_code == 413
    assert client.post("/v1/plain/events", headers=JSON, content=_padded(10_000)).status_code == 202
    assert len(kafka.messages("plain")) == before + 1


def _padded(size: int) -> bytes:
    event = json.dumps(GOOD).encode()
    return event + b" " * (size - len(event))


@pytest.mark.row(9)
def test_an_unknown_topic_is_refused_and_not_made(client: httpx.Client, kafka: MockKafka) -> None:
    answer = client.post("/v1/no-topic/events", headers=KEY, json=GOOD)
    assert answer.status_code == 503
    assert answer.json()["detail"] == "topic no-topic does not exist: run levada topics apply"
    assert answer.headers["retry-after"]
    assert answer.json()["event_id"]
    assert "no-topic" not in kafka.topics()
    assert count("no-topic", 503) >= 1


def test_keys_are_rotated_without_a_restart(client: httpx.Client, settings: Settings) -> None:
    keys = required(settings.collector.api_keys_file, "keys")
    before = keys.read_text()
    new = {"Authorization": "Bearer k-new"}

    def status(headers: dict[str, str]) -> int:
        return client.post("/v1/plain/events", headers=headers, json=GOOD).status_code

    assert (status(KEY), status(new)) == (202, 401)
    try:
        added = {**json.loads(before), "new": {"sha256": digest("k-new"), "pipelines": ["plain"]}}
        keys.write_text(json.dumps(added))
        wait_until(lambda: status(new) == 202)
        assert status(KEY) == 202  # both hold until the old one is taken away
        del added["all"]
        keys.write_text(json.dumps(added))
        wait_until(lambda: status(KEY) == 401)
        assert status(new) == 202
        keys.write_text("{")  # the last good ones stay
        wait_until(lambda: REGISTRY.get_sample_value("levada_file_broken", {"file": keys.name}) == 1)
        assert status(new) == 202
    finally:
        keys.write_text(before)
        wait_until(lambda: status(KEY) == 202)


def test_a_declaration_taken_away_while_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = Declarations(tmp_path, None)
    monkeypatch.setattr(reload, "declared_names", lambda _: ["gone", "plain"])
    (tmp_path / "plain.json").write_text(json.dumps({"fields": {"n": {"type": "long"}}}))
    declared.refresh()
    assert list(declared) == ["plain"]


def test_a_new_declaration_is_taken_up(client: httpx.Client, settings: Settings, kafka: MockKafka) -> None:
    kafka.make_topic("late")
    declaration = settings.pipelines / "late.json"
    declaration.write_text(json.dumps({"fields": {"n": {"type": "lng"}}}))
    wait_until(lambda: REGISTRY.get_sample_value("levada_file_broken", {"file": "late.json"}) == 1)
    assert client.post("/v1/late/events", headers=KEY, json={"n": 1}).status_code == 404
    declaration.write_text(json.dumps({"fields": {"n": {"type": "long"}}}))
    wait_until(lambda: client.post("/v1/late/events", headers=KEY, json={"n": 1}).status_code == 202)
    declaration.write_text("{")  # the last good one stays
    wait_until(lambda: REGISTRY.get_sample_value("levada_file_broken", {"file": "late.json"}) == 1)
    assert client.post("/v1/late/events", headers=KEY, json={"n": 1}).status_code == 202
    declaration.unlink()
    wait_until(lambda: client.post("/v1/late/events", headers=KEY, json={"n": 1}).status_code == 404)


def test_many_at_once(client: httpx.Client, kafka: MockKafka) -> None:
    before = len(kafka.messages("plain"))

    def post(number: int) -> tuple[int, str]:
        answer = client.post("/v1/plain/events", headers={**KEY, "Idempotency-Key": f"m{number}"}, json=GOOD)
        return answer.status_code, answer.json()["event_id"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(200)))
    assert answers == [(202, f"m{number}") for number in range(200)]
    assert len(kafka.messages("plain")) == before + 200


@pytest.mark.parametrize(("limit", "value"), [("max_in_flight", 0), ("_MAX_HELD_BYTES", 5)])
def test_too_much_at_once(settings: Settings, limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit.startswith("_"):
        monkeypatch.setattr(module, limit, value)
    else:
        own = settings.collector.model_copy(update={limit: value})
        settings = settings.model_copy(update={"collector": own})
    collector = Collector(settings)

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(collector)) as client:
            return await client.post("http://collector/v1/plain/events", headers=KEY, json=GOOD)

    answer = asyncio.run(post())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert collector._in_flight == collector._bodies._held == 0


@effort(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 100),
    user=st.text(st.characters(codec="utf-8")),
    event_id=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64),
)
def test_what_is_posted_is_what_is_in_the_topic(
    client: httpx.Client, kafka: MockKafka, n: int, user: str, event_id: str
) -> None:
    answer = client.post("/v1/keyed/events", headers={**KEY, "Idempotency-Key": event_id}, json={"n": n, "user": user})
    receipt = answer.json()
    assert (answer.status_code, receipt["event_id"]) == (202, event_id)
    message = next(
        m for m in kafka.messages("keyed") if (m.partition(), m.offset()) == (receipt["partition"], receipt["offset"])
    )
    assert json.loads(message.value()) == {"n": n, "user": user}
    assert (message.key() or b"").decode() == user
    assert dict(message.headers())["event-id"].decode() == event_id
