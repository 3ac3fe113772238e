"""The gate at work: judge the version of a run, sign the decision, move the champion last."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import structlog

from levada.evidence import Record
from levada.lake import catalog
from levada.registry import case, gate, report, tracking
from levada.registry.book import Book
from levada.registry.case import BASELINE_FILE, BASELINE_ROWS, REPORT_FILE
from levada.registry.data import declared_model
from levada.registry.errors import TrainingError
from levada.registry.frozen import FROZEN_FILE

if TYPE_CHECKING:
    from levada.config import Settings
    from levada.pipeline import Pipeline
    from levada.registry.case import Evidence
    from levada.registry.gate import Verdict
    from levada.registry.generation import State
    from levada.scoring import OnnxModel

REPORT_PAGE: Final = "gate/report.html"
_ATTEMPTS: Final = 5

log = structlog.get_logger()


@dataclass(frozen=True)
class Approval:
    """A person's decision that a version shall serve."""

    by: str
    why: str


def promote(settings: Settings, pipeline: Pipeline, run: str, approval: Approval | None = None) -> Record:
    """Judge what ``levada train --run <run>`` registered and let it serve if it earned that.

    A version is judged once: asked again, its record stands, unless it waits for approval and this is the approval.
    One gate at a time judges it, or the report of one would lie beside the signature of another. A gate that loses
    against one of another version judges anew, against the new champion. A decision that was cut off is finished by
    the next gate, and an alias moved by hand is put back.

    Raises:
        TrainingError: the run registered no version, its files are not what was registered, there is nothing to
            approve, or another gate is at it for long. Nothing was changed then.
    """
    with Book.open(settings, pipeline.name) as book, book.generations.alone(pipeline.name, run) as still_alone:
        for _ in range(_ATTEMPTS):
            # Before the state: a champion that another gate makes meanwhile is none that was lost.
            earlier = book.earlier()
            state = book.settle()
            version = book.version_of_run(run)
            record = book.record_of(version)
            if record is not None and (approval is None or _was_approved(pipeline, record)):
                break
            serving = book.champion(state.champion)
            model, found = case.gather(book.client, book.key, catalog(settings), pipeline, version, serving)
            # A person approves what the gate has said, so the gate speaks first.
            given = approval if record is not None else None
            asked = declared_model(pipeline).gate
            verdict = gate.judge(asked, found.case, approved=given is not None, earlier=earlier)
            for alarm in verdict.alarms:
                log.warning("alarm", pipeline=pipeline.name, version=version.version, alarm=alarm)
            still_alone()
            book.take(_write(book, pipeline, version, model, found, verdict, state, given))
        else:
            raise TrainingError(f"other gates of {pipeline.name} were faster {_ATTEMPTS - 1} times: run it again")
    log.info("gate", pipeline=pipeline.name, run=run, **asdict(record))
    return record


def _was_approved(pipeline: Pipeline, record: Record) -> bool:
    """Whether an approval was taken already; False if the version waits for it."""
    if record.outcome != "needs approval" and record.approved_by is None:
        raise TrainingError(
            f"version {record.version} of {pipeline.name} was {record.outcome}: only a version that needs approval can "
            "be approved"
        )
    return record.outcome != "needs approval"


def _write(
    book: Book,
    pipeline: Pipeline,
    version: Any,
    model: OnnxModel,
    found: Evidence,
    verdict: Verdict,
    state: State,
    approval: Approval | None,
) -> Record:
    """Store the report and the champion's future evidence beside the version; the record that seals them."""
    promoted = verdict.outcome == "promoted"
    frozen = found.frozen.grown(found.held_out) if approval is not None and promoted else found.frozen
    # Of all rows, as new ones are: training alone lacks every content that is held out or frozen.
    drawn = found.every.take(np.arange(0, len(found.every), -(-len(found.every) // BASELINE_ROWS)))
    files = {FROZEN_FILE: frozen.raw, BASELINE_FILE: drawn.to_parquet()}
    digests = {name: sha256(raw).hexdigest() for name, raw in files.items()}
    content = report.content(pipeline, version, found, verdict, digests, approval)
    raw = report.to_json(content)
    tracking.upload(
        book.client, version.run_id,
        {REPORT_FILE: raw, REPORT_PAGE: report.page(content, found), **(files if promoted else {})},
    )  # fmt: skip
    return Record(
        outcome=verdict.outcome,
        version=str(version.version),
        champion=str(version.version) if promoted else state.champion,
        metric=declared_model(pipeline).gate.metric,
        value=verdict.value,
        champion_value=verdict.champion_value,
        reason="; ".join(verdict.reasons),
        onnx_sha256=model.sha256,
        decided_at=book.later(),
        generation=state.generation + promoted,
        approved_by=approval.by if approval is not None else None,
        approved_why=approval.why if approval is not None else None,
        report_sha256=sha256(raw).hexdigest(),
    )
