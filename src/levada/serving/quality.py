"""What was found when the champion was watched, as metrics: the predictor looks at the registry anyway."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import structlog
from prometheus_client import Gauge

from levada.serving.registry import Version
from levada.watched import WATCH_TAG, Watched

_NAMES: Final = ["name", "version"]

QUALITY: Final = Gauge(
    "levada_model_quality", "The gate's metric on logged predictions whose label has come", [*_NAMES, "metric"]
)
FROZEN: Final = Gauge("levada_model_quality_frozen", "The same on the frozen evaluation set", [*_NAMES, "metric"])
CALIBRATION: Final = Gauge(
    "levada_model_calibration_error", "Expected calibration error on predictions whose label has come", _NAMES
)
DRIFT: Final = Gauge(
    "levada_model_drift_psi",
    "Population stability index of logged predictions against the rows there were when the champion was trained; the "
    "label's is of what was predicted",
    [*_NAMES, "field"],
)
ALARMS: Final = Gauge("levada_model_watch_alarms", "Alarms of the last look at the champion", _NAMES)
ROWS: Final = Gauge("levada_model_watch_rows", "Logged predictions that the last look was at", _NAMES)
LABELLED: Final = Gauge("levada_model_watch_labelled_rows", "Of them, those whose label has come", _NAMES)
TIME: Final = Gauge("levada_model_watch_timestamp_seconds", "When the champion was looked at last", _NAMES)

log = structlog.get_logger()


class Quality:
    """The metrics of one champion; what was shown last stays until there is something newer."""

    def __init__(self) -> None:
        self._shown: tuple[str, str] | None = None

    def show(self, name: str, version: Version) -> None:
        """Show what a version's tag says."""
        text = version.tags.get(WATCH_TAG, "")
        if self._shown == (version.number, text):
            return
        self._shown = version.number, text
        for gauge in (QUALITY, FROZEN, CALIBRATION, DRIFT, ALARMS, ROWS, LABELLED, TIME):
            gauge.clear()
        if not text:
            return
        try:
            found = Watched.from_json(text)
            at = datetime.fromisoformat(found.at).timestamp()
        except ValueError as error:
            log.warning("what was watched cannot be read", model=name, version=version.number, error=str(error))
            return
        labels = (name, version.number)
        for gauge, value in ((QUALITY, found.value), (FROZEN, found.frozen_value)):
            if value is not None:
                gauge.labels(*labels, found.metric).set(value)
        if found.calibration is not None:
            CALIBRATION.labels(*labels).set(found.calibration)
        for field, size in found.drift.items():
            DRIFT.labels(*labels, field).set(size)
        for gauge, value in ((ALARMS, len(found.alarms)), (ROWS, found.rows), (LABELLED, found.labelled), (TIME, at)):
            gauge.labels(*labels).set(value)
