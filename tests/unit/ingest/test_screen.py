"""Screens and their reviews: what is set aside, why, and what becomes of it."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from dataclasses import replace
from typing import Any, Literal

import httpx
import pytest
from typer.testing import CliRunner

from levada.cli.main import app
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
    assert [decision.state for decision in held["go"].decisions] == ["release", "released"]
    for decision in held["go"].decisions:
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


@pytest.mark.parametrize("before", ["_event", "_record"])
def test_a_release_that_was_cut_off_is_seen_and_done_again(
    client: httpx.Client, kafka: MockKafka, reviews: Reviews, settings: Settings, before: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before the event went on, and before it was recorded that it did."""
    event_id = f"cut-off{before}"
    post(client, event_id, event(amount=5000))
    made = getattr(reviews, before)

    def cut(*arguments: Any) -> Any:
        return 1 / 0 if before == "_event" or arguments[1] == "released" else made(*arguments)

    monkeypatch.setattr(reviews, before, cut)
    with pytest.raises(ZeroDivisionError):
        reviews.decide([event_id], "released", by="ann", note="")
    monkeypatch.undo()
    assert state_of(reviews, event_id) == "releasing"
    assert ids(kafka, "screened").count(event_id) == (0 if before == "_event" else 1)
    assert settings.kafka is not None
    monkeypatch.setenv("LEVADA_KAFKA__BOOTSTRAP", settings.kafka.bootstrap)
    monkeypatch.setenv("LEVADA_KAFKA__PROTOCOL", "PLAINTEXT")
    monkeypatch.setenv("LEVADA_PIPELINES", str(settings.pipelines))
    listed = CliRunner().invoke(app, ["review", "list", "screened"]).output
    assert re.search(rf"{event_id} +releasing ", listed)
    assert "of them cut off in their release: release them again" in listed
    with pytest.raises(ReviewError, match="was released by ann"):
        reviews.decide([event_id], "rejected", by="ben", note="")
    reviews.decide([event_id], "released", by="ben", note="")
    # One id: the lake drops the second.
    assert ids(kafka, "screened").count(event_id) == (1 if before == "_event" else 2)
    assert state_of(reviews, event_id) == "released"
    with pytest.raises(ReviewError, match="was released by ann"):
        reviews.decide([event_id], "released", by="ben", note="")


def state_of(reviews: Reviews, event_id: str) -> str:
    return next(held.state for held in reviews.held() if held.event_id == event_id)


@pytest.mark.parametrize("other", ["rejected", "released"])
def test_of_two_who_decide_at_once_the_first_in_the_topic_is_right(
    client: httpx.Client, kafka: MockKafka, reviews: Reviews, settings: Settings,
    other: Literal["released", "rejected"], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ann has looked, and then Ben, who looks later, is quicker."""
    both, alone = f"both-{other}", f"alone-{other}"
    for event_id in (both, alone):
        post(client, event_id, event(amount=5000))
    produce, ben = (
        reviews._produce,
        Reviews(required(settings.kafka, ""), load_pipeline(settings.pipelines, "screened")),
    )

    def after_ben(messages: Any) -> Any:
        monkeypatch.undo()
        ben.decide([both], other, by="ben", note="")
        return produce(messages)

    monkeypatch.setattr(reviews, "_produce", after_ben)
    with pytest.raises(ReviewError, match=f"event {both} was {other} by ben"):
        reviews.decide([both, alone], "released", by="ann", note="")
    assert ids(kafka, "screened").count(both) == (1 if other == "released" else 0)  # Ben's
    assert ids(kafka, "screened").count(alone) == 1
    assert (state_of(reviews, both), state_of(reviews, alone)) == (other, "released")


def test_no_clock_says_which_decision_was_first(client: httpx.Client, reviews: Reviews) -> None:
    post(client, "clocks", event(amount=5000))
    held = next(held for held in reviews.held() if held.event_id == "clocks")
    ahead = reviews._record(held, "rejected", "ben", "")
    ahead["headers"] = list((dict(ahead["headers"]) | {"decided-at": "2999-01-01T00:00:00+00:00"}).items())
    reviews._produce([ahead])
    reviews._produce([reviews._record(held, "release", "ann", "")])
    assert state_of(reviews, "clocks") == "rejected"


def test_values_are_not_kept_in_memory(client: httpx.Client, kafka: MockKafka, reviews: Reviews) -> None:
    """However large an event is, it takes the same; and of two in one partition the one that is meant goes on."""
    amounts = {"large1": 5001.0, "large2": 5002.0}
    for event_id, amount in amounts.items():
        post(client, event_id, event(amount=amount, user="u" * 8000))
    held = {each.event_id: each for each in reviews.held()}
    assert len(pickle.dumps(held["large1"])) < 1000
    reviews.decide(["large2", "large1"], "released", by="ann", note="")
    released = {dict(m.headers())["event-id"].decode(): json.loads(m.value()) for m in kafka.messages("screened")}
    assert {event_id: released[event_id]["amount"] for event_id in amounts} == amounts


def test_an_event_that_is_kept_no_longer_is_named(
    client: httpx.Client, kafka: MockKafka, reviews: Reviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(client, "gone", event(amount=5000, user="u12"))
    post(client, "after", event(amount=5000, user="u12"))
    read = reviews._read

    def late(log: Any) -> Any:
        """As if the topic began behind the event by the time its value is fetched."""
        found = read(log)
        found.events["gone"] = replace(found.events["gone"], offset=10**6)
        return found

    monkeypatch.setattr(reviews, "_read", late)
    with pytest.raises(ReviewError, match=r"screened\.review does not keep event gone any longer"):
        reviews.decide(["gone"], "released", by="ann", note="")
    assert "gone" not in ids(kafka, "screened")


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
