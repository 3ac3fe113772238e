"""A challenger in shadow: asked what the champion was asked, heard by nobody but the metrics.

What was answered is put into a queue; a thread compares, now and then, all that it finds there in one run. It works for
at most a tenth of the time, and what is too much is dropped, so it sees a sample of a busy predictor's requests.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

import numpy as np
import structlog
from prometheus_client import Counter, Gauge, Histogram

from levada.serving.direct import Asked, Mirror
from levada.serving.forms import BadRows, Row
from levada.serving.loaded import Loaded, Outcomes, Scores

_MAX_ROWS: Final = 500
"""As many as are compared in about a millisecond, for which answers may have to wait."""
_MAX_BYTES: Final = 1_048_576
"""Of the bodies that asked for them: a row may hold a text of any length."""
_PAUSE_SECONDS: Final = 0.1
_REST: Final = 9
"""Seconds of rest for each second of work, at least."""
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
    "One run of the challenger, for what was asked in a tenth of a second",
    _NAMES,
    buckets=(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25),
)
DROPPED: Final = Counter("levada_shadow_dropped_total", "Rows that the challenger was not asked", ["name", "reason"])

log = structlog.get_logger()

_Item = tuple[Loaded, Sequence[Row], Outcomes, Scores, Asked, int]


class Shadow:
    """The queue and the thread of one model."""

    def __init__(self, name: str, challenger: Callable[[], Loaded | None], keep: Mirror = lambda *_: None) -> None:
        """Compare with the model that ``challenger`` gives; ``keep`` is shown what that says."""
        self._name = name
        self._challenger = challenger
        self._keep = keep
        self._queue: deque[_Item] = deque()
        # Rows and bytes; each is written by one thread.
        self._put = self._taken = 0
        self._bytes_put = self._bytes_taken = 0
        self._busy = DROPPED.labels(name, "busy")
        self._asked: tuple[Loaded | None, int, int] = (None, 0, 0)

    def mirror(
        self, model: Loaded, rows: Sequence[Row], outcomes: Outcomes, scores: Scores, asked: Asked, size: int
    ) -> None:
        """Show what was answered; never waits."""
        if self._challenger() is None:
            return
        if self._put - self._taken + len(rows) > _MAX_ROWS or self._bytes_put - self._bytes_taken + size > _MAX_BYTES:
            self._busy.inc(len(rows))
            return
        self._put += len(rows)
        self._bytes_put += size
        self._queue.append((model, rows, outcomes, scores, asked, size))

    def run(self, stop: threading.Event) -> None:
        """Compare until ``stop``."""
        while not stop.is_set():
            begin = time.thread_time()
            try:
                self.compare()
            except Exception as error:  # without this thread no challenger would be asked again
                log.error("a comparison broke off", model=self._name, exc_info=error)
            stop.wait(max(_PAUSE_SECONDS, _REST * (time.thread_time() - begin)))

    def compare(self) -> None:
        """Compare all that waits."""
        challenger = self._current()
        found = [self._queue.popleft() for _ in range(len(self._queue))]
        try:
            for model, items in groupby(found, lambda item: item[0]):
                shown = list(items)
                rows = [row for item in shown for row in item[1]]
                if challenger is not None:
                    self._try(challenger, model, rows, shown)
        finally:
            self._taken += sum(len(item[1]) for item in found)
            self._bytes_taken += sum(item[5] for item in found)

    def _current(self) -> Loaded | None:
        """The challenger; the metrics of one that it is no longer would be taken for those of today."""
        challenger, (before, _, _) = self._challenger(), self._asked
        if before is not None and challenger is not before:
            for metric in (SHADOWED, AGREEMENT, DIFFERENCE, SECONDS):
                metric.remove(self._name, before.version)
            self._asked = (None, 0, 0)
        return challenger

    def _try(self, challenger: Loaded, model: Loaded, rows: list[Row], shown: list[_Item]) -> None:
        try:
            self._ask(challenger, model, rows, shown)
        except BadRows:
            DROPPED.labels(self._name, "no answer").inc(len(rows))
        except Exception as error:
            DROPPED.labels(self._name, "error").inc(len(rows))
            log.warning("the challenger failed", model=self._name, error=f"{type(error).__name__}: {error}")

    def _ask(self, challenger: Loaded, model: Loaded, rows: list[Row], shown: list[_Item]) -> None:
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
        asked = [request for item in shown for request in item[4]]
        self._keep(challenger, rows, found, its, asked, sum(item[5] for item in shown))
        labels = (self._name, challenger.version)
        said = [model.label(outcome) for item in shown for outcome in item[2]]
        same = sum(_same(one, challenger.label(other)) for one, other in zip(said, found, strict=True))
        _, agreed, compared = self._asked
        agreed, compared = agreed + same, compared + len(rows)
        self._asked = challenger, agreed, compared
        SECONDS.labels(*labels).observe(taken)
        SHADOWED.labels(*labels).inc(len(rows))
        AGREEMENT.labels(*labels).set(agreed / compared)
        if challenger.model.meta.labels == model.model.meta.labels:
            scores = np.concatenate([item[3] for item in shown])
            DIFFERENCE.labels(*labels).inc(float(np.abs(its - scores).max(axis=1).sum()))


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _NEAR * abs(one)
    return one == other
