"""The gate at work: judge the version of a run, sign the decision, move the alias last."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from levada import evidence
from levada.config import read_secret, required
from levada.evidence import ALIAS, GATE_TAG, MODEL_FILE, RUN_TAG, SIGNATURE_TAG, EvidenceError, Record
from levada.registry import gate, tracking
from levada.registry.data import Dataset, declared_model
from levada.registry.errors import TrainingError
from levada.registry.train import EVALUATION_FILE, EVALUATION_TAG
from levada.scoring import OnnxModel, ScoringError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from levada.config import Settings
    from levada.pipeline import Pipeline

log = structlog.get_logger()


def promote(settings: Settings, pipeline: Pipeline, run: str) -> Record:
    """Judge what ``levada train --run <run>`` registered and let it serve if it earned that.

    A version is judged once: asked again, its record stands. The alias always follows the newest record, so a
    promotion that was cut off is finished by the next one, and an alias moved by hand is put back.

    Raises:
        TrainingError: the run registered no version, or its files are not what was registered.
    """
    tracking.check_run(run)
    key = read_secret(required(settings.gate_key_file, "LEVADA_GATE_KEY_FILE")).encode()
    client = tracking.connect(settings)
    name = pipeline.name
    mine = tracking.version_of_run(client, name, run)
    if mine is None:
        raise TrainingError(f"run {run} registered no version of {name}: run levada train --run {run} first")
    known = {str(version.version): version for version in tracking.versions(client, name)}
    latest = evidence.newest(key, name, ((number, version.tags) for number, version in known.items()))
    try:
        record = evidence.verify(key, name, str(mine.version), mine.tags)
    except EvidenceError:
        champion = known.get(latest.champion) if latest is not None and latest.champion is not None else None
        record = _judge(client, key, pipeline, mine, champion, latest)
        latest = record
    if latest is not None and latest.champion is not None:
        client.set_registered_model_alias(name, ALIAS, latest.champion)
    log.info("gate", pipeline=name, run=run, **asdict(record))
    return record


def _judge(
    client: MlflowClient, key: bytes, pipeline: Pipeline, mine: Any, champion: Any | None, latest: Record | None
) -> Record:
    rule = declared_model(pipeline).gate
    challenger = OnnxModel(tracking.download(client, mine.run_id, MODEL_FILE))
    rows = tracking.download(client, mine.run_id, EVALUATION_FILE)
    if hashlib.sha256(rows).hexdigest() != mine.tags.get(EVALUATION_TAG):
        raise TrainingError(
            f"{EVALUATION_FILE} of {pipeline.name} version {mine.version} is not the one registered: train again"
        )
    frozen = Dataset.from_parquet(rows, challenger.meta.features, challenger.meta.label)
    truth = frozen.labels.tolist()
    value = gate.accuracy(truth, challenger.predict(frozen.columns))
    champion_value, incomparable = None, ""
    if champion is not None:
        try:
            champion_value = gate.accuracy(truth, _champion(client, key, champion, challenger).predict(frozen.columns))
        except (ScoringError, EvidenceError) as error:
            incomparable = str(error)
    serving = str(champion.version) if champion is not None else None
    outcome = gate.decide(rule, value, serving, champion_value, incomparable)
    record = Record(
        outcome=outcome.outcome,
        version=str(mine.version),
        champion=str(mine.version) if outcome.outcome == "promoted" else serving,
        metric=rule.metric,
        value=value,
        champion_value=champion_value,
        reason=outcome.reason,
        onnx_sha256=challenger.sha256,
        decided_at=_later_than(latest),
    )
    report = {
        **asdict(record),
        "run": mine.tags[RUN_TAG],
        "floor": rule.floor,
        "margin": rule.margin,
        "rows": len(frozen),
        "rows_sha256": mine.tags[EVALUATION_TAG],
    }
    client.log_text(mine.run_id, json.dumps(report, indent=2), "gate/report.json")
    text = record.to_json()
    client.set_model_version_tag(pipeline.name, mine.version, GATE_TAG, text)
    client.set_model_version_tag(pipeline.name, mine.version, SIGNATURE_TAG, evidence.sign(key, pipeline.name, text))
    return record


def _champion(client: MlflowClient, key: bytes, version: Any, challenger: OnnxModel) -> OnnxModel:
    """The serving model, if it can be scored on the challenger's evaluation set.

    Where the challenger takes more features, rows fall otherwise into the split and the champion may have been
    trained on some of those it is judged by; that favours the champion, which is the safe side.
    """
    record = evidence.verify(key, version.name, str(version.version), version.tags)
    raw = tracking.download(client, version.run_id, MODEL_FILE)
    if hashlib.sha256(raw).hexdigest() != record.onnx_sha256:
        raise ScoringError("its model file is not the one that was judged")
    model = OnnxModel(raw)
    if model.meta.label != challenger.meta.label:
        raise ScoringError(f"it predicts {model.meta.label}, not {challenger.meta.label}")
    types = {feature.name: feature.type == "string" for feature in challenger.meta.features}
    other = [f.name for f in model.meta.features if types.get(f.name) != (f.type == "string")]
    if other:
        raise ScoringError(f"it takes {', '.join(other)}, which the new model does not or with another type")
    return model


def _later_than(latest: Record | None) -> str:
    """Now, or just after the latest decision where this machine's clock is behind the one that made it."""
    now = datetime.now(UTC)
    if latest is not None:
        now = max(now, datetime.fromisoformat(latest.decided_at) + timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds")
