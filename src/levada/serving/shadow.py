"""A challenger in shadow: asked what the champion was asked, heard by nobody but the metrics.

What was answered is put into a queue, which costs the answer nothing; a thread compares. It works for at most a tenth
of the time, and what comes meanwhile is dropped, so it sees a sample of a busy predictor's requests.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import structlog
from prometheus_client import Counter, Gauge, Histogram

from levada.serving.forms import BadRows, Row
from levada.serving.loaded import Loaded, Outcomes, Scores

_MAX_ROWS: Final = 1000
_REST: Final = 9
"""Seconds of rest for each second of work."""
_NEAR: Final = 0.01
_NAMES: Final = ["name", "version"]

SHADOWED: Final = Counter("levada_shadow_rows_total", "Rows that the challenger was asked", _NAMES)
AGREEMENT: Final = Gauge(
    "levada_shadow_agreement",
    "Share of rows to which the challenger says what the champion said (a regression: within 1 %), since it was loaded",
    _NAMES,
)
DIFFERENCE: Final = Counter(
    "levada_shadow_difference_total", "Sum over rows of the largest difference of a score, or of the value", _NAMES
)
SECONDS: Final = Histogram(
    "levada_shadow_seconds",
    "One run of the challenger for one request's rows",
    _NAMES,
    buckets=(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25),
)
DROPPED: Final = Counter("levada_shadow_dropped_total", "Rows that the challenger was not asked", ["name", "reason"])

log = structlog.get_logger()

_Item = tuple[Loaded, Sequence[Row], Outcomes, Scores]


class Shadow:
    """The queue and the thread of one model."""

    def __init__(self, name: str, challenger: Callable[[], Loaded | None]) -> None:
        self._name = name
        self._challenger = challenger
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._put = self._taken = 0  # each is written by one thread
        self._asked: tuple[Loaded | None, int, int] = (None, 0, 0)

    def mirror(self, model: Loaded, rows: Sequence[Row], outcomes: Outcomes, scores: Scores) -> None:
        """Show what was answered; never waits."""
        if self._challenger() is None:
            return
        if self._put - self._taken + len(rows) > _MAX_ROWS:
            DROPPED.labels(self._name, "busy").inc(len(rows))
            return
        self._put += len(rows)
        self._queue.put((model, rows, outcomes, scores))

    def run(self, stop: threading.Event) -> None:
        """Compare until ``stop``."""
        while not stop.is_set():
            try:
                item = self._queue.get(timeout=0.5)
            except queue.Empty:
                continue
            begin = time.thread_time()
            challenger = self._challenger()
            if challenger is not None:
                try:
                    self._compare(challenger, *item)
                except BadRows:
                    DROPPED.labels(self._name, "no answer").inc(len(item[1]))
                except Exception as error:
                    DROPPED.labels(self._name, "error").inc(len(item[1]))
                    log.warning("the challenger failed", model=self._name, error=f"{type(error).__name__}: {error}")
            self._taken += len(item[1])
            stop.wait(_REST * (time.thread_time() - begin))

    def _compare(
        self, challenger: Loaded, model: Loaded, rows: Sequence[Row], outcomes: Outcomes, scores: Scores
    ) -> None:
        names = [feature.name for feature in model.form.features]
        wanted = [feature.name for feature in challenger.form.features]
        if not {*wanted} <= {*names}:
            DROPPED.labels(self._name, "features").inc(len(rows))
            return
        if wanted != names:
            order = [names.index(name) for name in wanted]
            rows = [tuple(row[place] for place in order) for row in rows]
        begin = time.perf_counter()
        found, its = challenger.score(rows)
        taken = time.perf_counter() - begin
        labels = (self._name, challenger.version)
        same = sum(_same(model.label(one), challenger.label(other)) for one, other in zip(outcomes, found, strict=True))
        before, agreed, asked = self._asked
        agreed, asked = (agreed, asked) if before is challenger else (0, 0)
        self._asked = challenger, agreed + same, asked + len(rows)
        SECONDS.labels(*labels).observe(taken)
        SHADOWED.labels(*labels).inc(len(rows))
        AGREEMENT.labels(*labels).set((agreed + same) / (asked + len(rows)))
        if challenger.model.meta.labels == model.model.meta.labels:
            DIFFERENCE.labels(*labels).inc(float(np.abs(its - scores).max(axis=1).sum()))


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _NEAR * abs(one)
    return one == other
