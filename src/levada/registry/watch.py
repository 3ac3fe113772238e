"""The champion while it serves: what it is asked against what it was trained on, and how good it is on what came true.

Nothing is decided here. What is found is written beside the version, as metrics of its run and as one tag, and an alarm
may start a training, whose model has to pass the gate.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import structlog

from levada.evidence import MODEL_FILE
from levada.lake import catalog
from levada.pipeline import MODEL_VERSION
from levada.registry import answered, checks
from levada.registry.book import Book
from levada.registry.case import Files, only, unfit
from levada.registry.compare import Answers, calibration_error, exists, metric, reliability
from levada.registry.data import declared_model, features_of
from levada.registry.dataset import Dataset
from levada.registry.errors import NotEnoughData
from levada.scoring import OnnxModel
from levada.watched import WATCH_TAG, Watched

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from pyiceberg.catalog import Catalog

    from levada.config import Settings
    from levada.pipeline import Pipeline

SKEW: Final = 0.01
"""Share of predictions that may be others than the model gives for what was logged; more raises the alarm."""
_LONGEST: Final = 200
"""Characters of an alarm in the tag."""

log = structlog.get_logger()


def watch(settings: Settings, pipeline: Pipeline) -> tuple[Watched, str]:
    """Look at the champion once and write down what is found.

    Returns:
        What was found; and the version that waits for a person already, so that one more training would not help, or
        nothing.

    Raises:
        NotEnoughData: there is no champion yet, or nothing is logged.
        TrainingError: the champion's evidence does not hold.
    """
    with Book.open(settings, pipeline.name) as book:
        latest = book.latest()
        champion = book.champion(latest.champion if latest is not None else None)
        if champion is None:
            raise NotEnoughData(f"{pipeline.name} has no champion yet: there is nothing to watch")
        lake = catalog(settings)
        rows = answered.read(lake, pipeline)
        if rows is None:
            raise NotEnoughData(f"no prediction of {pipeline.name} is in the lake yet: ask its predictor")
        files = Files(book.client, book.key, pipeline, champion)
        found = look(lake, pipeline, str(champion.version), files, rows)
        _write(book.client, champion, found)
        versions = book.versions()
        newest = versions[max(versions, key=int)]
        record = book.record_of(newest)
    for alarm in found.alarms:
        log.warning("alarm", pipeline=pipeline.name, version=champion.version, alarm=alarm)
    waits = str(newest.version) if record is not None and record.outcome == "needs approval" else ""
    log.info("watched", pipeline=pipeline.name, version=champion.version, **json.loads(found.to_json()))
    return found, waits


def look(lake: Catalog, pipeline: Pipeline, version: str, files: Files, rows: pa.Table) -> Watched:
    """What the logged predictions say of a champion.

    Args:
        lake: where labels are.
        pipeline: whose model it is.
        version: the champion.
        files: what lies beside it.
        rows: logged predictions, as :func:`levada.registry.answered.read` gives them.
    """
    model = declared_model(pipeline)
    gate = model.gate
    own = answered.of_version(rows, version, model.watch.window)
    seen: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": len(own), "metric": gate.metric,
        "bound": gate.drift.psi,
    }  # fmt: skip
    if len(own) < checks.LEAST_ROWS:
        return Watched(
            **seen, note=f"{len(own)} predictions are logged, {checks.LEAST_ROWS} are needed to tell anything"
        )
    champion = OnnxModel(files.read(MODEL_FILE, files.record.onnx_sha256))
    if other := unfit(champion, gate):
        return Watched(**seen, note=f"the champion {other}")
    truth = answered.labelled(lake, pipeline, own)
    seen |= {"labelled": len(truth), "shadow": _shadow(pipeline, rows, version, truth)}
    there = {feature.name: feature.type for feature in features_of(pipeline)}
    lacking = [f.name for f in champion.meta.features if there.get(f.name) != f.type]
    if files.baseline is None or files.frozen is None:
        return Watched(**seen, note="the champion has no rows beside it to compare with: train again")
    if lacking or champion.meta.label != model.label:
        other = ", ".join(lacking) or champion.meta.label
        return Watched(**seen, note=f"the champion knows another declaration ({other}): train again")
    asked = _dataset(pipeline, own, own[model.label])
    judged = _dataset(pipeline, truth, truth[answered.TRUTH])
    frozen, known = Answers.of(champion, files.frozen.rows), None
    if len(judged) >= checks.LEAST_ROWS:
        known = Answers.of(champion, judged)
        for name, answers in (("value", known), ("frozen_value", frozen)):
            if exists(gate.metric, answers):
                seen[name] = metric(gate.metric, answers)
            else:
                seen["note"] = f"{gate.metric} says nothing of {len(answers)} labels that are all the same"
        if not gate.regression:
            seen["calibration"] = calibration_error(reliability(known))
    else:
        seen["note"] = f"{len(judged)} of the predictions have a label, {checks.LEAST_ROWS} are needed for the quality"
    names = [name for name in pipeline.features if name in files.baseline.columns]
    found = checks.check(
        gate.drift, {"recent": only(asked, names)}, only(files.baseline, names),
        frozen if known is not None else None, {"recent": known} if known is not None else None,
        regression=gate.regression,
    )  # fmt: skip
    # The same may be asked again and again: that is no sign of anything.
    found = [one for one in found if one.what != checks.DUPLICATES]
    alarms = [one.text for one in found if one.alarm] + _skew(champion, asked, regression=gate.regression)
    seen["drift"] = {one.what: round(one.size, 4) for one in found if one.what in (*names, model.label)}
    return Watched(**seen, alarms=tuple(alarm[:_LONGEST] for alarm in alarms))


def _dataset(pipeline: Pipeline, rows: pa.Table, labels: pa.ChunkedArray) -> Dataset:
    """The features as they were logged, with predictions or truth as the label."""
    model = declared_model(pipeline)
    made = Dataset.from_arrow(rows, features_of(pipeline), model.label)
    values = labels.to_numpy()
    return Dataset(
        made.features, made.label, made.columns, values.astype(np.float64) if model.gate.regression else values
    )


def _skew(champion: OnnxModel, asked: Dataset, *, regression: bool) -> list[str]:
    """Whether the predictor said what the model says: that what serves is what was judged is shown, not believed."""
    again = np.array(champion.predict(asked.columns), dtype=np.float64 if regression else object)
    other = int((~answered.same(asked.labels, again, regression=regression)).sum())
    if other <= SKEW * len(asked):
        return []
    return [f"skew: {other} of {len(asked)} logged predictions are not what the model says to what was logged"]


def _shadow(pipeline: Pipeline, rows: pa.Table, version: str, truth: pa.Table) -> Any:
    newer = [number for number in rows[MODEL_VERSION].unique().to_pylist() if int(number) > int(version)]
    for challenger in sorted(newer, key=int, reverse=True):
        if (found := answered.shadowed(pipeline, rows, version, challenger, truth)) is not None:
            return found
    return None


def _write(client: MlflowClient, version: Any, found: Watched) -> None:
    from mlflow.entities import Metric

    values = {
        "rows": found.rows,
        "labelled": found.labelled,
        "alarms": len(found.alarms),
        found.metric: found.value,
        "calibration_error": found.calibration,
        **{f"psi/{name}": size for name, size in found.drift.items()},
    }
    if found.shadow is not None:
        values |= {"shadow/version": int(found.shadow.version), "shadow/agreement": found.shadow.agreement}
    now = int(time.time() * 1000)
    metrics = [Metric(f"watch/{name}", float(value), now, 0) for name, value in values.items() if value is not None]
    client.log_batch(version.run_id, metrics=metrics)
    client.set_model_version_tag(version.name, str(version.version), WATCH_TAG, found.to_json())
