"""Screens and their reviews: what is set aside, why, and what becomes of it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest

from levada.config import Settings, required
from levada.ingest import screen as module
from levada.ingest.review import ReviewError, Reviews
from levada.ingest.screen import Screens
from levada.pipeline import load_pipeline, parse_pipeline

from .kafka import MockKafka

KEY = {"Authorization": "Bearer k-all"}
_users = itertools.count()


def event(**changes: Any) -> dict[str, Any]:
    return {"user": f"user{next(_users)}", "amount": 10, "pin": "7777", **changes}


def post(client: httpx.Client, event_id: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/screened/events", headers={**KEY, "Idempotency-Key": event_id}, json=body)
    assert answer.status_code == 202
    receipt: dict[str, Any] = answer.json()
    assert receipt["event_id"] == event_id
    return receipt


def ids(kafka: MockKafka, topic: str) -> list[str]:
    return [dict(message.headers())["event-id"].decode() for message in kafka.messages(topic)]


@pytest.fixture
def reviews(settings: Settings) -> Reviews:
    return Reviews(required(settings.kafka, ""), load_pipeline(settings.pipelines, "screened"))


@pytest.mark.row(6, part="amount, rate and pattern; the decision with its reasons")
def test_suspicious_events_are_set_aside_with_the_reasons(client: httpx.Client, kafka: MockKafka) -> None:
    assert "review" not in post(client, "usual", event(amount=1000))
    receipt = post(client, "two-reasons", event(amount=1000.5, pin="0000", user="u7"))
    assert receipt["review"] is True
    assert "usual" in ids(kafka, "screened")
    assert "two-reasons" not in ids(kafka, "screened")
    message = next(m for m in kafka.messages("screened.review") if dict(m.headers())["event-id"] == b"two-reasons")
    assert (message.partition(), message.offset()) == (receipt["partition"], receipt["offset"])
    headers = {name: value.decode() for name, value in message.headers()}
    assert headers["screen"] == "large,well-known"
    # What a rule on a sensitive field looks for is not told.
    assert headers["reason"] == "amount > 1000 is true; its rule is true"
    assert headers["decided-at"].endswith("+00:00")
    assert (headers["pipeline"], headers["schema"]) == ("screened", "1")
    assert message.key() == b"u7"
    assert json.loads(message.value())["amount"] == 1000.5
    assert b"0000" not in message.value()


@pytest.mark.row(6, part="rate")
def test_the_fourth_event_of_a_user_is_set_aside(client: httpx.Client, kafka: MockKafka) -> None:
    receipts = [post(client, f"often{number}", event(user="eager")) for number in range(5)]
    assert [receipt.get("review", False) for receipt in receipts] == [False, False, False, True, True]
    assert "review" not in post(client, "other", event(user="patient"))
    headers = next(
        dict(m.headers()) for m in kafka.messages("screened.review") if dict(m.headers())["event-id"] == b"often3"
    )
    assert headers["reason"] == b"more than 3 events of one user in 1h"


def test_a_batch_is_screened_line_by_line(client: httpx.Client, kafka: MockKafka) -> None:
    lines = [json.dumps(event(amount=amount)) for amount in (1, 2000, 3)]
    headers = {**KEY, "Content-Type": "application/x-ndjson", "Idempotency-Key": "screened-batch"}
    receipts = client.post("/v1/screened/events", headers=headers, content="\n".join(lines)).json()["receipts"]
    assert [receipt.get("review", False) for receipt in receipts] == [False, True, False]
    assert "screened-batch-2" in ids(kafka, "screened.review")


@pytest.mark.row(6, part="each decision is kept and can be audited")
def test_review(client: httpx.Client, kafka: MockKafka, reviews: Reviews) -> None:
    sent = event(amount=5000, user="u9")
    for event_id in ("go", "stay", "wait", "go"):  # "go" was repeated by its client
        post(client, event_id, sent)
    states = {held.event_id: held.state for held in reviews.held()}
    assert [states[name] for name in ("go", "stay", "wait")] == ["waiting"] * 3
    reviews.decide(["go"], "released", by="ann", note="asked by phone")
    reviews.decide(["stay"], "rejected", by="ben", note="")
    held = {each.event_id: each for each in reviews.held()}
    assert [held[name].state for name in ("go", "stay", "wait")] == ["released", "rejected", "waiting"]
    [decision] = held["go"].decisions
    assert (decision.by, decision.note, decision.at > held["go"].since) == ("ann", "asked by phone", True)
    [released] = [m for m in kafka.messages("screened") if dict(m.headers())["event-id"] in (b"go", b"stay", b"wait")]
    [first, _] = [
        m for m in kafka.messages("screened.review")
        if dict(m.headers())["event-id"] == b"go" and "decision" not in dict(m.headers())
    ]  # fmt: skip
    assert released.value() == first.value()
    assert released.key() == first.key() == b"u9"
    assert [name for name, _ in released.headers()] == ["event-id", "event-time", "pipeline", "schema"]
    assert dict(released.headers()).items() <= dict(first.headers()).items()

    before = len(kafka.messages("screened")), len(kafka.messages("screened.review"))
    for event_ids, problem in (
        (["wait", "go"], "event go was released by ann"),
        (["wait", "nobody"], "no event nobody"),
    ):
        with pytest.raises(ReviewError, match=problem):
            reviews.decide(event_ids, "released", by="ann", note="")
    assert before == (len(kafka.messages("screened")), len(kafka.messages("screened.review")))


def test_a_release_that_was_cut_off_is_done_again(client: httpx.Client, kafka: MockKafka, reviews: Reviews) -> None:
    post(client, "cut-off", event(amount=5000))
    event_, decision = reviews._event, reviews._decision
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reviews, "_decision", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reviews.decide(["cut-off"], "released", by="ann", note="")
    assert (event_, decision) == (reviews._event, reviews._decision)
    reviews.decide(["cut-off"], "released", by="ann", note="")
    assert ids(kafka, "screened").count("cut-off") == 2  # one id: the lake drops the second


def test_no_screen_no_review(settings: Settings) -> None:
    with pytest.raises(ReviewError, match="pipeline plain declares no screen"):
        Reviews(required(settings.kafka, ""), load_pipeline(settings.pipelines, "plain"))


def screens(now: list[float], **rate: Any) -> Screens:
    entry = {"fields": {"user": {"type": "string", "required": False}}, "screen": {"often": {"rate": rate}}}
    return Screens(parse_pipeline(entry, "rated"), lambda: now[0])


def test_the_rate_is_of_a_moving_window() -> None:
    now = [1000.0]
    often = screens(now, field="user", events=10, per="10s")
    assert all(often.judge({"user": "a"}) is None for _ in range(10))
    assert often.judge({"user": "a"}) is not None
    assert often.judge({"user": None}) is None
    now[0] = 1015.0  # half of the span before is still in the window: 11/2 of them
    assert [often.judge({"user": "a"}) is None for _ in range(5)] == [True] * 4 + [False]
    now[0] = 1040.0  # all forgotten
    assert [often.judge({"user": "a"}) is None for _ in range(11)] == [True] * 10 + [False]


def test_the_memory_of_a_rate_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 100)
    often = screens([1000.0], field="user", events=1, per="10s")
    for number in range(150):
        assert often.judge({"user": f"u{number}"}) is None
    forgot = module.FORGOTTEN.labels("rated", "often")._value.get()
    assert forgot == 50
    assert often.judge({"user": "u149"}) is not None  # the last ones are known
    assert often.judge({"user": "u0"}) is None  # the first were forgotten
