"""The page that people read."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from levada.config import Settings
from levada.pipeline import Pipeline
from levada.registry import tracking
from levada.registry.promote import Approval, promote
from levada.registry.train import train

from .conftest import MEASURES, redeclared

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides


class Page(HTMLParser):
    """Tags with their attributes, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_of_a_comparison_has_numbers_plots_and_nothing_from_elsewhere(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    gate = {"floor": 0.9, "leastRows": 20, "slices": {"species": 0.5}}
    pipeline = redeclared(iris, gate=gate)
    post(pipeline, rows)
    train(settings, pipeline, "a")
    promote(settings, pipeline, "a")
    post(pipeline, rows * 8)  # repeated rows are suspicious
    train(settings, pipeline, "b")
    promote(settings, pipeline, "b")
    record = promote(settings, pipeline, "b", Approval("<b>ada", "<script>alert(1)</script>"))
    assert record.outcome == "promoted"
    client = tracking.connect(settings)
    run_id = client.get_model_version("iris", "2").run_id
    text = tracking.download(client, run_id, "gate/report.html").decode()
    page = Page(text)
    assert page.open == ["html", "body"][: len(page.open)]
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if {"src", "href", "onload"} & attrs.keys()]
    assert "http" not in text.replace("http-equiv", "")
    # Metric, calibration and one plot a feature.
    assert sum(tag == "svg" for tag, _ in page.tags) >= 2 + len(MEASURES)
    for said in (
        record.outcome,
        "Approved by &lt;b&gt;ada",
        "accuracy",
        "calibration",
        "petal_width",
        "Slices",
        "New data against the rows there were when the champion was trained",
        "SHA-256",
    ):
        assert said in text
    report = json.loads(tracking.download(client, run_id, "gate/report.json"))
    assert report["outcome"] == record.outcome
    assert {one["what"] for one in report["checks"]} >= {*MEASURES, "species", "duplicates", "champion"}
    assert report["frozen"]["rows"] >= 20
