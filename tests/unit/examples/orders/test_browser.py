"""The order page in headless Chromium: what a person fills in, presses and reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.chromium import running
from tests.unit.ingest.kafka import MockKafka

from .conftest import Page
from .test_page import events

ORDER = {"name": "Grace Hopper", "user_id": "grace", "password": "1906"}
PICTURES = Path(__file__).parents[4] / "build" / "pictures"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with running(tmp_path_factory.mktemp("profile"), "window-size=720,1100") as browser:
        yield browser


class Seen:
    """The page as it stands in the browser."""

    def __init__(self, browser: Chrome, page: Page) -> None:
        self._browser, self._page = browser, page

    def open(self) -> None:
        self._browser.get(self._page.url)

    def fill(self, product: str | None = "IU ticket", **fields: str) -> None:
        for name, text in {**ORDER, **fields}.items():
            found = self._labelled(name)
            found.clear()
            found.send_keys(text)
        if product is not None:
            self._browser.find_element(By.XPATH, f"//label[normalize-space()='{product}']").click()

    def _labelled(self, name: str) -> WebElement:
        """An input, found as a person finds it: by its label."""
        label = {"name": "Name", "user_id": "User id", "password": "PIN"}[name]
        target = self._browser.find_element(By.XPATH, f"//label[normalize-space()='{label}']").get_attribute("for")
        return self._browser.find_element(By.ID, str(target))

    def press(self) -> None:
        """Press the button and wait for the next page."""
        before = self._browser.find_element(By.TAG_NAME, "html")
        self._browser.find_element(By.TAG_NAME, "button").click()
        WebDriverWait(self._browser, 20).until(
            lambda browser: (
                browser.find_element(By.TAG_NAME, "html") != before
                and browser.execute_script("return document.readyState") == "complete"
            )
        )

    @property
    def heading(self) -> str:
        return self._browser.find_element(By.TAG_NAME, "h1").text

    @property
    def number(self) -> str:
        return self._browser.find_element(By.CLASS_NAME, "number").text

    def described(self, name: str) -> str:
        """What a screen reader says after an input that is wrong."""
        found = self._labelled(name)
        if found.get_attribute("aria-invalid") != "true":
            return ""
        ids = str(found.get_attribute("aria-describedby")).split()
        return " ".join(self._browser.find_element(By.ID, each).text for each in ids)

    def value(self, name: str) -> str | None:
        return self._labelled(name).get_attribute("value")

    def focused(self) -> str | None:
        return self._browser.switch_to.active_element.get_attribute("class")

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        assert self._browser.save_screenshot(str(PICTURES / f"orders-{name}.png"))


@pytest.fixture
def seen(chromium: Chrome, page: Page) -> Iterator[Seen]:
    chromium.delete_all_cookies()
    seen = Seen(chromium, page)
    seen.open()
    yield seen
    errors = [entry for entry in chromium.get_log("browser") if "status of" not in entry["message"]]
    assert errors == []  # nothing that the page's own security policy refuses, for one


@pytest.mark.row(1, process=True, part="the order page")
def test_an_order_is_placed(seen: Seen, kafka: MockKafka) -> None:
    before = events(kafka)
    seen.picture("empty")
    seen.fill()
    seen.press()
    assert seen.heading == "Your order is placed"
    seen.picture("placed")
    assert events(kafka).keys() - before.keys() == {seen.number}


@pytest.mark.row(2, process=True, part="the order page")
@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("password", "19o6", "A PIN is exactly 4 digits."),
        ("password", "19061", "A PIN is exactly 4 digits."),
        ("name", " ", "Enter your name."),
        ("name", "G" * 101, "Use at most 100 characters."),
        ("user_id", "gr ace", "Use letters from a to z, digits and . _ @ - only."),
    ],
)
def test_what_is_wrong_is_said_beside_the_field(
    seen: Seen, kafka: MockKafka, name: str, text: str, reason: str
) -> None:
    before = events(kafka)
    seen.fill(**{name: text})
    seen.press()
    assert reason in seen.described(name)
    assert [other for other in ORDER if seen.described(other)] == [name]
    assert seen.focused() == "summary"  # a screen reader begins with what is wrong
    assert seen.value("password") == ""
    assert seen.value("user_id") == (text if name == "user_id" else ORDER["user_id"])
    assert events(kafka) == before


@pytest.mark.row(2, process=True, part="the order page")
def test_a_product_that_is_missing_or_not_sold(seen: Seen, chromium: Chrome, kafka: MockKafka) -> None:
    before = events(kafka)
    seen.fill(product=None)
    seen.press()
    assert "Choose a product." in chromium.find_element(By.ID, "product-error").text
    seen.picture("refused")
    chromium.execute_script("document.querySelector('#product-0').value = 'free'")  # type: ignore[no-untyped-call]
    seen.fill()
    seen.press()
    assert "Choose one of IU ticket" in chromium.find_element(By.ID, "product-error").text
    assert events(kafka) == before


@pytest.mark.row(5, process=True, part="the order page")
def test_a_double_click_is_one_order(seen: Seen, chromium: Chrome, kafka: MockKafka) -> None:
    before = events(kafka)
    seen.fill(user_id="double")
    chromium.execute_script(  # type: ignore[no-untyped-call]
        "const button = document.querySelector('button'); button.click(); button.click()"
    )
    # The page may go between being found and being read, which the driver tells in more than one way.
    WebDriverWait(chromium, 20, ignored_exceptions=[WebDriverException]).until(
        lambda _: seen.heading == "Your order is placed"
    )
    time.sleep(1)  # the first click's request goes on without its page
    assert events(kafka).keys() - before.keys() == {seen.number}


@pytest.mark.row(7, process=True, part="the order page")
def test_kafka_away_and_back_is_one_order(seen: Seen, kafka: MockKafka) -> None:
    before = events(kafka)
    seen.fill(user_id="back")
    kafka.hold()
    try:
        seen.press()
        assert seen.heading == "Your order is not confirmed yet"
        number = seen.number
        seen.picture("retry")
    finally:
        kafka.go_on()
    deadline = time.monotonic() + 20
    while seen.heading != "Your order is placed":
        assert time.monotonic() < deadline
        seen.press()
    assert seen.number == number
    assert events(kafka).keys() - before.keys() == {number}
