"""Puts together what the gate looks at: both models' answers on the frozen set and on recent rows, and the checks."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from levada import evidence
from levada.evidence import MODEL_FILE, SNAPSHOT_TAG, EvidenceError
from levada.pipeline import MODEL_VERSION
from levada.registry import answered, checks, data, tracking
from levada.registry.compare import Answers, exists
from levada.registry.data import declared_model, judged_fields
from levada.registry.dataset import Dataset, Sides, newer_than, sides
from levada.registry.errors import TrainingError, Unreadable
from levada.registry.frozen import FROZEN_FILE, Frozen, read_stored
from levada.registry.gate import Case, Champion
from levada.registry.record import FROZEN_TAG
from levada.scoring import OnnxModel, ScoringError

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient
    from numpy.typing import NDArray
    from pyiceberg.catalog import Catalog

    from levada.pipeline import Gate, Pipeline
    from levada.registry.checks import Window
    from levada.watched import Shadowed

REPORT_FILE: Final = "gate/report.json"
BASELINE_FILE: Final = "gate/training.parquet"
BASELINE_ROWS: Final = 10_000
"""Rows of its snapshot kept beside a version for later comparisons, evenly drawn; a distribution needs no more."""
_TIMED: Final = 100
_MEND: Final = "put it back from a backup of MLflow, or let an earlier version serve with levada rollback"

Ask = Callable[[Dataset], Answers]


@dataclass(frozen=True)
class Standing:
    """The champion, and what it left behind when it was judged."""

    version: str
    ask: Ask | None
    """None if it cannot be asked."""
    incomparable: str
    """Why it cannot."""
    baseline: Dataset | None
    """Rows there were when it was trained."""
    new: NDArray[np.bool_]
    """Which rows of the challenger's snapshot came since, shape (n,)."""


@dataclass(frozen=True)
class Evidence:
    """A case for the gate, and the data it was made of."""

    case: Case
    frozen: Frozen
    """What both were compared on."""
    every: Dataset
    """All rows of the challenger's snapshot, whatever side they are on, with every field that may be a feature."""
    training: Dataset
    """Those it was trained on."""
    held_out: Dataset
    """Those that were held out."""
    baseline: Dataset | None = None
    """The rows there were when the champion was trained, with the fields that new rows have too."""
    windows: dict[Window, Dataset] = field(default_factory=dict)
    shadow: Shadowed | None = None
    """What the challenger said in shadow, if it was asked."""
    latency: dict[str, float] = field(default_factory=dict)
    """Version → seconds that it takes for one row."""


def assemble(
    pipeline: Pipeline, split: Sides, frozen: Frozen | None, challenger: Ask, champion: Standing | None
) -> Evidence:
    """The evidence on a challenger.

    Args:
        pipeline: whose model it is.
        split: its snapshot.
        frozen: the frozen evaluation set; without one, the held-out rows become it.
        challenger: asks the challenger.
        champion: what serves, if anything does.

    Raises:
        TrainingError: the frozen rows cannot be measured.
    """
    gate = declared_model(pipeline).gate
    training, held_out = split.every.take(split.training), split.every.take(split.held_out)
    lacking = [name for name in pipeline.features if frozen is not None and name not in frozen.rows.columns]
    if frozen is None or lacking:
        frozen = Frozen.of(held_out)
    ours = challenger(frozen.rows)
    if not exists(gate.metric, ours):
        raise TrainingError(
            f"{gate.metric} says nothing of {pipeline.name}: all {len(ours)} rows of the evaluation set have one "
            f"{frozen.rows.label}: train again when there are others, or declare another gate.metric"
        )
    if champion is None:
        return Evidence(Case(frozen.rows, ours), frozen, split.every, training, held_out)

    incomparable = champion.incomparable
    if lacking:
        incomparable = f"the frozen evaluation set has no {', '.join(lacking)}"
    ask = None if incomparable else champion.ask
    order = np.argsort(split.came, kind="stable")
    new = order[champion.new[order]]
    windows: dict[Window, Dataset] = {"new": split.every.take(new)}
    if len(new) > gate.window:
        windows["recent"] = split.every.take(new[-gate.window :])
    untrained = new[split.held_out[new]][-gate.window :]
    recent = split.every.take(untrained) if len(untrained) >= checks.LEAST_ROWS else None
    theirs = ask(frozen.rows) if ask is not None else None
    found, baseline = [], champion.baseline
    if baseline is not None:
        gone = [name for name in baseline.columns if name not in split.every.columns]
        names = [*pipeline.features, *gone]
        found = checks.check(
            gate.drift,
            {name: only(rows, names) for name, rows in windows.items()},
            only(baseline, names),
            theirs,
            {name: ask(rows) for name, rows in windows.items() if len(rows)} if ask is not None else None,
            regression=gate.regression,
        )
        baseline = only(baseline, checks.alike(baseline, split.every))
    compared = Champion(
        champion.version, theirs, ask(recent) if ask is not None and recent is not None else None, incomparable
    )
    case = Case(frozen.rows, ours, compared, challenger(recent) if recent is not None else None, found)
    return Evidence(case, frozen, split.every, training, held_out, baseline, windows)


def only(rows: Dataset, names: Sequence[str]) -> Dataset:
    """Rows with these features alone."""
    features = tuple(feature for feature in rows.features if feature.name in names)
    return Dataset(features, rows.label, {f.name: rows.columns[f.name] for f in features}, rows.labels)


def gather(
    client: MlflowClient, key: bytes, catalog: Catalog, pipeline: Pipeline, version: Any, champion: Any | None
) -> tuple[OnnxModel, Evidence]:
    """Read from registry and lake what a version and the champion are judged by.

    The gate reads the lake itself, at the snapshot the version names: what a trainer says of its data is not evidence.

    Raises:
        TrainingError: the version's model file or snapshot cannot be used.
    """
    try:
        model = OnnxModel(tracking.download(client, version.run_id, MODEL_FILE))
    except ScoringError as error:
        raise TrainingError(f"version {version.version} of {pipeline.name} cannot be judged: {error}") from error
    if other := unfit(model, declared_model(pipeline).gate):
        raise TrainingError(f"version {version.version} of {pipeline.name} {other}")
    rows = data.read_at(catalog, pipeline, int(version.tags[SNAPSHOT_TAG]))
    if champion is None:
        split = sides(rows, pipeline)
        return model, assemble(pipeline, split, None, lambda asked: Answers.of(model, asked), None)
    files = Files(client, key, pipeline, champion)
    split = sides(rows, pipeline, files.frozen.rows if files.frozen is not None else None)
    if files.frozen is not None and version.tags.get(FROZEN_TAG) != files.frozen.sha256:
        _refuse_overlap(pipeline, version, rows, files.frozen.rows)
    known = data.event_ids(catalog, pipeline, int(champion.tags[SNAPSHOT_TAG]))
    serving, incomparable = files.model(model)
    standing = Standing(
        str(champion.version),
        (lambda asked: Answers.of(serving, asked)) if serving is not None else None,
        incomparable,
        files.baseline,
        newer_than(split, known),
    )
    found = assemble(pipeline, split, files.frozen, lambda asked: Answers.of(model, asked), standing)
    both = {str(version.version): model, **({standing.version: serving} if serving is not None else {})}
    return model, replace(
        found,
        shadow=_shadow(catalog, pipeline, standing.version, str(version.version)),
        latency={number: latency(each, found.frozen.rows) for number, each in both.items()},
    )


def unfit(model: OnnxModel, gate: Gate) -> str:
    """Why the gate's metric cannot judge what a model predicts; "" if it can."""
    if bool(model.meta.labels) != gate.regression:
        return ""
    judges = "numbers" if gate.regression else "classes"
    return f"predicts a {_kind(model)}, gate.metric {gate.metric} judges {judges}: train again"


def _kind(model: OnnxModel) -> str:
    return "class" if model.meta.labels else "number"


def _shadow(catalog: Catalog, pipeline: Pipeline, champion: str, challenger: str) -> Shadowed | None:
    rows = answered.read(catalog, pipeline)
    if rows is None or challenger not in rows[MODEL_VERSION].unique().to_pylist():
        return None
    own = answered.of_version(rows, champion, declared_model(pipeline).watch.window)
    return answered.shadowed(pipeline, rows, champion, challenger, answered.labelled(catalog, pipeline, own))


def latency(model: OnnxModel, rows: Dataset) -> float:
    """Seconds that a model takes for one row: the median of as many runs as there are rows, at most a hundred."""
    taken = []
    for place in range(min(len(rows), _TIMED)):
        one = rows.take(np.array([place])).columns
        begin = time.perf_counter()
        model.scores(one)
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def _refuse_overlap(pipeline: Pipeline, version: Any, rows: pa.Table, frozen: Dataset) -> None:
    """Refuse a version that kept another evaluation set apart, if it was trained on rows of this one.

    That is so where the set grew by an approval after the training, or somebody moved the alias before it.
    """
    split = sides(rows, pipeline)
    names = [name for name in pipeline.features if name in frozen.columns]
    seen = int(np.isin(frozen.digests(names), split.every.digests(names)[split.training]).sum())
    if seen:
        raise TrainingError(
            f"version {version.version} of {pipeline.name} was trained on {seen} rows of the frozen evaluation set, "
            "which is another one now: train again"
        )


class Files:
    """What lies beside the champion, each file only if its digest is the one in the champion's signed report."""

    def __init__(self, client: MlflowClient, key: bytes, pipeline: Pipeline, version: Any) -> None:
        """Read what the champion is compared by.

        Raises:
            TrainingError: its record or one of its files was changed, or cannot be read.
        """
        self._client, self._version = client, version
        self._name = f"{pipeline.name} version {version.version}"
        try:
            self.record = evidence.verify(key, pipeline.name, str(version.version), version.tags)
        except EvidenceError as error:
            raise TrainingError(
                f"the gate's record of {self._name}, the champion, does not hold: {error}; {_MEND}"
            ) from error
        self.frozen: Frozen | None = None
        self.baseline: Dataset | None = None
        if self.record.report_sha256 is None:
            return
        report = json.loads(self.read(REPORT_FILE, self.record.report_sha256))
        fields, label = judged_fields(pipeline), declared_model(pipeline).label
        self.frozen = Frozen.read(self.read(FROZEN_FILE, report["files"][FROZEN_FILE]), fields, label)
        self.baseline = read_stored(self.read(BASELINE_FILE, report["files"][BASELINE_FILE]), fields, label)

    def read(self, path: str, digest: str) -> bytes:
        """One file, if it is the one with this digest.

        Raises:
            TrainingError: it is another, or cannot be read.
        """
        raw = self._load(path)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise TrainingError(
                f"{path} of {self._name}, the champion, is not the file that was signed: somebody changed it; {_MEND}"
            )
        return raw

    def _load(self, path: str) -> bytes:
        from mlflow.exceptions import MlflowException

        try:
            return tracking.download(self._client, self._version.run_id, path)
        except (MlflowException, OSError) as error:  # of each kind of store its own; those of HTTP are OSErrors
            raise Unreadable(
                f"{path} of {self._name}, the champion, cannot be read: {error}; if MLflow answers and the file is "
                f"lost, {_MEND}"
            ) from error

    def model(self, challenger: OnnxModel) -> tuple[OnnxModel | None, str]:
        """The serving model, or why it cannot be asked what the challenger is asked."""
        try:
            model = OnnxModel(self.read(MODEL_FILE, self.record.onnx_sha256))
        except Unreadable:  # it may be readable again in a minute: that is nothing for a person to decide
            raise
        except (ScoringError, TrainingError) as error:
            return None, str(error)
        if model.meta.label != challenger.meta.label:
            return None, f"it predicts {model.meta.label}, not {challenger.meta.label}"
        if bool(model.meta.labels) != bool(challenger.meta.labels):
            return None, f"it predicts a {_kind(model)}, not a {_kind(challenger)}"
        there = {feature.name: feature.type == "string" for feature in challenger.meta.features}
        if self.frozen is not None:
            there |= {feature.name: feature.type == "string" for feature in self.frozen.rows.features}
        other = [f.name for f in model.meta.features if there.get(f.name) != (f.type == "string")]
        if other:
            return None, f"it takes {', '.join(other)}, which is not declared any more or has another type"
        return model, ""
