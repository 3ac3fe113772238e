"""The page about the predictor, as a browser shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from levada.pipeline import parse_pipeline
from tests.chromium import running

from .conftest import DECLARED
from .predicting import Running


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    made = Running(parse_pipeline(DECLARED, "things"))
    yield f"http://127.0.0.1:{made.port}"
    made.close()


def test_all_of_the_page_comes_from_the_predictor(url: str) -> None:
    page = httpx.get(f"{url}/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert named == ["data:,", "docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js"]
    assert "//" not in page.text
    assert not re.search(r"<script>|<style| on\w+=", page.text)
    for path, kind in zip(named[1:], ("text/css", "text/javascript", "text/javascript"), strict=True):
        answer = httpx.get(f"{url}/{path}")
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
        assert answer.content
    assert not [path for path in httpx.get(f"{url}/openapi.json").json()["paths"] if path.startswith("/docs")]
    assert httpx.get(f"{url}/docs/../pyproject.toml").status_code == 404


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chrome]:
    with running(tmp_path, logs={"browser": "ALL", "performance": "ALL"}) as browser:
        yield browser


def test_a_browser_shows_how_to_predict_and_asks_nobody_else(url: str, chromium: Chrome) -> None:
    chromium.get(f"{url}/docs")
    paths = (By.CSS_SELECTOR, ".opblock-summary-path")
    WebDriverWait(chromium, 30).until(lambda browser: browser.find_elements(*paths))
    shown = {each.get_attribute("data-path") for each in chromium.find_elements(*paths)}
    assert {"/predict", "/version", "/readyz"} <= shown
    # Among them would be what the page's policy forbids.
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
    told = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in told if one["method"] == "Network.requestWillBeSent"}
    assert f"{url}/openapi.json" in asked
    assert {each for each in asked if not each.startswith((f"{url}/", "data:", "chrome"))} == set()
