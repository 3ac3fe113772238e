"""Trains a registered version again from its record, and says whether the same model comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import structlog

from levada.evidence import MODEL_FILE, RUN_TAG, SNAPSHOT_TAG
from levada.lake import catalog
from levada.pipeline import Pipeline
from levada.registry import contract, data, record, tracking
from levada.registry.contract import Context
from levada.registry.errors import TrainingError
from levada.registry.train import Trained, fit, read_kept
from levada.scoring import OnnxModel

if TYPE_CHECKING:
    from levada.config import Settings

SAME: Final = 1e-9
"""Greatest difference of a metric or score that still counts as the same: sums may be taken in another order."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Replay:
    """A training that was repeated."""

    version: str
    metrics: dict[str, tuple[float, float]]
    """Metric → as recorded, as replayed."""
    difference: float
    """Largest difference of a score on the held-out rows."""
    changed: list[str]
    """What is not as it was: the trainer's source, the image, packages."""

    @property
    def same(self) -> bool:
        """Whether the same model came out."""
        equal = all(math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) for a, b in self.metrics.values())
        return equal and self.difference <= SAME


def replay(settings: Settings, name: str, number: str) -> Replay:
    """Train a version again: its snapshot, its declaration, its seed, its frozen rows kept apart; nothing is written.

    Args:
        settings: where lake and registry are.
        name: the pipeline.
        number: the version.

    Raises:
        TrainingError: there is no such version, or what it was trained from is gone.
    """
    client = tracking.connect(settings)
    version = next((one for one in tracking.versions(client, name) if str(one.version) == number), None)
    if version is None:
        raise TrainingError(f"{name} has no version {number}")
    tags = version.tags
    if lacking := [tag for tag in (record.SEED_TAG, SNAPSHOT_TAG, record.FROZEN_RUN_TAG) if tag not in tags]:
        raise TrainingError(f"version {number} of {name} has no tag {', '.join(lacking)}: it cannot be trained again")
    pipeline = Pipeline.model_validate_json(tracking.download(client, version.run_id, record.PIPELINE_FILE))
    trainer = contract.load(pipeline)
    frozen = None
    if tags[record.FROZEN_RUN_TAG] != "none":
        frozen = read_kept(client, pipeline, tags[record.FROZEN_RUN_TAG], tags[record.FROZEN_TAG]).frozen
    rows = data.read_at(catalog(settings), pipeline, int(tags[SNAPSHOT_TAG]))
    context = Context(int(tags[record.SEED_TAG]), tags[RUN_TAG], log.bind(pipeline=name, version=number))
    trained = fit(pipeline, trainer, rows, frozen, context)
    recorded = client.get_run(version.run_id).data.metrics
    was = OnnxModel(tracking.download(client, version.run_id, MODEL_FILE))
    return Replay(
        number,
        {metric: (recorded[metric], value) for metric, value in trained.metrics.items()},
        _difference(was, trained),
        _changed(
            tags, contract.source_digest(trainer), tracking.download(client, version.run_id, record.ENVIRONMENT_FILE)
        ),
    )


def _difference(was: OnnxModel, trained: Trained) -> float:
    columns = trained.held_out.columns
    before, after = was.scores(columns), trained.fitted.model.scores(columns)
    return float(np.abs(before - after).max()) if before.shape == after.shape else math.inf


def _changed(tags: dict[str, Any], source: str, environment: bytes) -> list[str]:
    before, now = set(environment.decode().split("\n")), set(record.environment().split("\n"))
    found = [f"package {line} then" for line in sorted(before - now)]
    found += [f"package {line} now" for line in sorted(now - before)]
    if tags[record.SOURCE_TAG] != source:
        found.append("the source of the trainer")
    if tags[record.IMAGE_TAG] != record.image():
        found.append(f"image {tags[record.IMAGE_TAG]} then, {record.image()} now")
    return found
