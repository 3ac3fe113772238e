"""The way back: the champion before the present one serves again."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import structlog

from levada.registry.book import Book
from levada.registry.errors import TrainingError

if TYPE_CHECKING:
    from levada.config import Settings
    from levada.evidence import Record
    from levada.registry.promote import Approval

log = structlog.get_logger()


def rollback(settings: Settings, pipeline: str, approval: Approval) -> Record:
    """Let the champion before the present one serve again, by a signed record that says who wanted it and why.

    Rolled back twice, the one before that serves. What the gate said of each version stays in its tags.

    Args:
        settings: where registry and database are.
        pipeline: its name.
        approval: who and why.

    Raises:
        TrainingError: there is no earlier champion, its evidence does not hold, or a gate decided meanwhile.
    """
    with Book.open(settings, pipeline) as book:
        state = book.settle()
        history, unsigned = book.history()
        earlier = _before(state.champion, history)
        if state.champion is None or earlier is None:
            lost = f"; {unsigned} of {unsigned + len(history)} rows of registry.history are not signed with this key"
            raise TrainingError(
                f"pipeline {pipeline}: there is no champion before {state.champion or 'the first'} to go back to"
                f"{lost if unsigned else ''}"
            )
        target = book.record_of(book.champion(earlier))
        if target is None or target.outcome != "promoted":
            raise TrainingError(
                f"version {earlier} of {pipeline} has no signed record of its promotion any more, nobody would serve it"
            )
        leaving = book.record_of(book.versions().get(state.champion)) or target
        record = replace(
            leaving,
            outcome="rolled back",
            version=state.champion,
            champion=earlier,
            reason=f"rolled back from version {state.champion} to {earlier}",
            decided_at=book.later(),
            generation=state.generation + 1,
            approved_by=approval.by,
            approved_why=approval.why,
        )
        if not book.take(record):
            raise TrainingError(f"a gate of {pipeline} decided meanwhile: look at it, and roll back again if need be")
        book.settle()
    log.info("rolled back", pipeline=pipeline, **asdict(record))
    return record


def _before(champion: str | None, history: list[Record]) -> str | None:
    """The champion to go back to: each promotion puts one on top of the pile, each roll-back takes the top away.

    Rows may be missing, so the present champion need not be on top, nor on the pile at all.
    """
    pile: list[str] = []
    for record in history:
        if record.outcome == "promoted":
            pile += [record.version] if pile[-1:] != [record.version] else []  # twice, if approved anew after a loss
        elif pile and pile[-1] == record.version:
            pile.pop()
    if champion in pile:
        while pile.pop() != champion:
            pass
    return pile[-1] if pile else None
