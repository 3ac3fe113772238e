"""The order page over HTTP, in front of the real collector: every answer, and what is in the topic after it."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path

import httpx
import pytest

from tests.unit.ingest.collecting import Collecting
from tests.unit.ingest.kafka import MockKafka

from .conftest import Page
from .visitor import Visitor

ORDER = {"name": "Ada Lovelace", "user_id": "ada", "password": "1815", "product": "iu_ticket"}


_people = itertools.count()


def someone() -> dict[str, str]:
    """An order of somebody new: many of one user in a minute are set aside as suspicious."""
    return {**ORDER, "user_id": f"ada.{next(_people)}"}


def reasons(answer: httpx.Response) -> dict[str, str]:
    """Field → what stands beside it."""
    found = re.findall(r'<p class="error" id="(\w+)-error">(.*?)</p>', answer.text)
    return {field: unescape(re.sub("<[^>]+>", "", text)).strip() for field, text in found}


@pytest.fixture
def visitor(page: Page) -> Iterator[Visitor]:
    visitor = Visitor(page.url)
    assert visitor.get().status_code == 200
    yield visitor
    visitor.close()


def events(kafka: MockKafka) -> dict[str, int]:
    """Event id → how often it is in the topic."""
    ids = [dict(message.headers())["event-id"].decode() for message in kafka.messages("orders")]
    return {event_id: ids.count(event_id) for event_id in ids}


def order_number(answer: httpx.Response) -> str:
    found = re.search(r'<dd class="number">([^<]+)</dd>', answer.text)
    assert found
    return found[1]


@pytest.mark.row(1, process=True, part="the order page")
def test_success_is_shown_only_after_the_acknowledgement(visitor: Visitor, kafka: MockKafka) -> None:
    before = events(kafka)
    answer = visitor.post(ORDER)
    assert (answer.status_code, answer.headers["location"]) == (303, "/placed")
    shown = visitor.get("/placed")
    assert "Your order is placed" in shown.text
    assert events(kafka).keys() - before.keys() == {order_number(shown)}
    message = next(m for m in kafka.messages("orders") if dict(m.headers())["event-id"] == order_number(shown).encode())
    event = json.loads(message.value())
    assert {name: event[name] for name in ("name", "user_id", "product")} == {
        name: ORDER[name] for name in ("name", "user_id", "product")
    }
    assert message.key() == b"ada"


def test_nobody_is_shown_a_success_without_an_order(page: Page) -> None:
    answer = httpx.get(f"{page.url}/placed")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


PIN = "A PIN is exactly 4 digits."
REFUSED = {
    "nothing": (
        dict.fromkeys(ORDER, ""),
        {
            "name": "Enter your name.",
            "user_id": "Enter your user id.",
            "password": "Enter your PIN.",
            "product": "Choose a product.",
        },
    ),
    "blank": ({"name": "  \t ", "user_id": " "}, {"name": "Enter your name.", "user_id": "Enter your user id."}),
    "short PIN": ({"password": "181"}, {"password": PIN}),
    "long PIN": ({"password": "18155"}, {"password": PIN}),
    "PIN of letters": ({"password": "18l5"}, {"password": PIN}),
    "PIN with a line after it": ({"password": "1815\n"}, {"password": PIN}),
    "PIN of other digits": ({"password": "١٨١٥"}, {"password": PIN}),
    "unknown product": ({"product": "free"}, {"product": "Choose one of IU ticket, CP ticket, EE ticket."}),
    "oversized name": ({"name": "x" * 101}, {"name": "Use at most 100 characters."}),
    "oversized user id": ({"user_id": "x" * 65}, {"user_id": "Use at most 64 characters."}),
    "name of two lines": ({"name": "Ada\nLovelace"}, {"name": "Use letters, digits and punctuation on one line."}),
    "user id with a blank": ({"user_id": "a da"}, {"user_id": "Use letters from a to z, digits and . _ @ - only."}),
}


@pytest.mark.row(2, process=True, part="the order page")
@pytest.mark.parametrize(("change", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_reason_beside_the_field_and_nothing_produced(
    visitor: Visitor, kafka: MockKafka, change: dict[str, str], expected: dict[str, str]
) -> None:
    before = events(kafka)
    answer = visitor.post({**ORDER, **change})
    assert answer.status_code == 422
    assert reasons(answer) == expected
    for field in expected:
        assert f"{field}-error" in answer.text.split("<form")[1].replace(f'id="{field}-error"', "")  # tied to the input
    assert ORDER["password"] not in answer.text.replace("18155", "")
    assert events(kafka) == before


@pytest.mark.row(2, process=True, part="the order page")
def test_an_order_larger_than_any_is_refused(visitor: Visitor, kafka: MockKafka) -> None:
    before = events(kafka)
    assert visitor.post({**ORDER, "name": "x" * 20_000}).status_code == 413
    assert events(kafka) == before


def test_what_the_collector_refuses_is_shown_beside_the_field(
    visitor: Visitor, kafka: MockKafka, collector: Collecting
) -> None:
    """The collector has the last word, also where the page has not noticed a change of the declaration."""
    declared = collector.declared / "orders.json"
    text = declared.read_text()
    declared.write_text(text.replace('"iu_ticket", ', ""))
    try:
        answer = post_until(visitor, 422)
        assert reasons(answer) == {"product": "must be one of cp_ticket, ee_ticket"}
    finally:
        declared.write_text(text)
    post_until(visitor, 303)


def post_until(visitor: Visitor, status: int) -> httpx.Response:
    """Post orders until one is answered so: the collector takes up a changed declaration within seconds."""
    deadline = time.monotonic() + 20
    while (answer := visitor.post(someone())).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return answer


@pytest.mark.parametrize("hidden", [{"csrf_token": "forged"}, {"csrf_token": ""}, {"order_key": "1"}])
def test_a_form_of_another_page_is_refused(visitor: Visitor, kafka: MockKafka, hidden: dict[str, str]) -> None:
    before = events(kafka)
    answer = visitor.post(someone(), **hidden)
    assert answer.status_code == 422
    assert "This page was open for too long" in answer.text
    assert events(kafka) == before
    assert visitor.post(someone()).status_code == 303  # the page that came with the refusal can be sent


def test_a_request_without_the_cookie_is_refused(page: Page, visitor: Visitor, kafka: MockKafka) -> None:
    before = events(kafka)
    assert httpx.post(page.url, data={**visitor.hidden, **ORDER}).status_code == 422
    assert events(kafka) == before


@pytest.mark.row(5, process=True, part="the order page")
def test_a_double_click_is_one_order(visitor: Visitor, kafka: MockKafka) -> None:
    before = events(kafka)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: visitor.post({**ORDER, "user_id": "twice"}), range(4)))
    assert {answer.status_code for answer in answers} == {303}
    made = {event_id: count for event_id, count in events(kafka).items() if event_id not in before}
    assert len(made) == 1  # one event id: the lake takes it once
    assert made.keys() == {order_number(visitor.get("/placed"))}


def test_a_page_brought_back_and_changed_is_another_order(visitor: Visitor, kafka: MockKafka) -> None:
    before = events(kafka)
    order = someone()
    assert visitor.post(order).status_code == 303
    assert visitor.post({**order, "product": "ee_ticket"}).status_code == 303
    assert len(events(kafka).keys() - before.keys()) == 2


@pytest.mark.row(7, process=True, part="the order page")
def test_kafka_away_is_a_retryable_message_and_then_one_order(visitor: Visitor, kafka: MockKafka) -> None:
    before = events(kafka)
    order = {**ORDER, "user_id": "patient"}
    kafka.hold()
    try:
        answer = visitor.post(order)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "Your order is not confirmed yet" in answer.text
        assert "placed" not in answer.text
        again = visitor.post({})  # all that the button sends
        assert (again.status_code, order_number(again)) == (503, order_number(answer))
    finally:
        kafka.go_on()
    deadline = time.monotonic() + 20
    while (done := visitor.post({})).status_code != 303:
        assert done.status_code == 503
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert order_number(visitor.get("/placed")) == order_number(answer)
    assert events(kafka).keys() - before.keys() == {order_number(answer)}


def test_the_collector_away_is_a_retryable_message(visitor: Visitor, collector: Collecting) -> None:
    collector.stop()
    try:
        answer = visitor.post(someone())
        assert answer.status_code == 503
        assert "Your order is not confirmed yet" in answer.text
    finally:
        collector.start()
    assert visitor.post({}).status_code == 303


def test_cookies_and_headers_are_of_the_careful_kind(page: Page) -> None:
    answer = httpx.get(page.url)
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("__Host-orders=")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    for each in (answer, httpx.get(f"{page.url}/nowhere"), httpx.post(page.url)):
        policy = each.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy
        assert each.headers["x-content-type-options"] == "nosniff"
        assert each.headers["cache-control"] == "no-store"
    assert "<script" not in httpx.get(page.url).text
    assert httpx.get(f"{page.url}/nowhere").status_code == 404
    assert "Werkzeug" not in httpx.get(page.url).headers["server"]


@pytest.mark.row(3, process=True, part="topic, logs and metrics of page and collector")
def test_orders_are_counted_and_the_pin_is_nowhere(
    page: Page, visitor: Visitor, collector: Collecting, kafka: MockKafka
) -> None:
    assert visitor.post({**someone(), "password": "9173"}).status_code == 303
    for message in kafka.messages("orders"):
        assert json.loads(message.value())["password"].startswith("$argon2id$")
        assert b"9173" not in message.value()
    log = page.log.read_text()
    assert '"event": "placed"' in log
    for text in (log, page.metrics(), collector.log.read_text(), collector.metrics()):
        # not as a number by itself: ports and times have four digits in a row, too
        assert re.search(r"(?<![0-9a-f.])9173(?![0-9a-f])", text) is None
        assert "Ada" not in text
    assert re.search(r'levada_order_page_orders_total\{outcome="placed"\} [1-9]', page.metrics())


def test_stops_cleanly(collector: Collecting, tmp_path: Path) -> None:
    page = Page(tmp_path, collector)
    page.stop()
    assert page.process.returncode == 0
