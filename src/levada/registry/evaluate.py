"""The gate's opinion without its power: judge a version, write nothing but the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from levada.lake import catalog
from levada.registry import case, gate, report, tracking
from levada.registry.book import Book
from levada.registry.data import declared_model

if TYPE_CHECKING:
    from levada.config import Settings
    from levada.pipeline import Pipeline
    from levada.registry.gate import Verdict

EVALUATION_REPORT: Final = "gate/evaluation.json"
EVALUATION_PAGE: Final = "gate/evaluation.html"


def evaluate(settings: Settings, pipeline: Pipeline, run: str) -> Verdict:
    """What ``levada promote --run <run>`` would decide now.

    Raises:
        TrainingError: the run registered no version, or its files are not what was registered.
    """
    with Book.open(settings, pipeline.name) as book:
        version, latest = book.version_of_run(run), book.latest()
        serving = book.champion(latest.champion if latest is not None else None)
        _, found = case.gather(book.client, book.key, catalog(settings), pipeline, version, serving)
        verdict = gate.judge(declared_model(pipeline).gate, found.case, earlier=book.earlier())
        content = report.content(pipeline, version, found, verdict, {})
        tracking.upload(
            book.client,
            version.run_id,
            {EVALUATION_REPORT: report.to_json(content), EVALUATION_PAGE: report.page(content, found)},
        )
    return verdict
