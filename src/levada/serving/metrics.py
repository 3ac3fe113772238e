"""What a predictor counts."""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import Counter, Histogram

REQUESTS: Final = Counter("levada_predict_requests_total", "Requests answered, by status", ["name", "code"])
ROWS: Final = Counter("levada_predict_rows_total", "Rows that were predicted", ["name"])
RUNS: Final = Counter("levada_predict_runs_total", "Runs of the model; one may answer several requests", ["name"])
SECONDS: Final = Histogram(
    "levada_predict_seconds",
    "From a request that is whole to its answer",
    ["name"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
"""Its sum grows by as many seconds a second as requests are in flight, which an autoscaler goes by
(docs/how-to/predict.md): a gauge would be 0 at most scrapes, and the size of a batch at others."""


class Counts:
    """The metrics of one model; to look labels up costs as much as to count."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._requests: dict[int, Any] = {}
        self._rows, self._runs = ROWS.labels(name), RUNS.labels(name)
        self.seconds = SECONDS.labels(name)
        """Histogram of durations."""

    def answered(self, status: int, requests: int = 1) -> None:
        """Count answers of one status."""
        counter = self._requests.get(status)
        if counter is None:
            counter = self._requests[status] = REQUESTS.labels(self._name, status)
        counter.inc(requests)

    def scored(self, rows: int) -> None:
        """Count one run of the model."""
        self._rows.inc(rows)
        self._runs.inc()
