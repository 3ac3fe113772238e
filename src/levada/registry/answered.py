"""The logged predictions in the lake: the newest of a version, their labels, and what a challenger said to the same."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import NoSuchTableError

from levada.lake import newest
from levada.pipeline import MODEL_VERSION, SHADOW
from levada.registry.compare import Answers, exists, metric
from levada.registry.data import EVENT_ID, EVENT_TIME, INGESTED_AT, declared_model
from levada.watched import Shadowed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyiceberg.catalog import Catalog

    from levada.pipeline import Gate, Pipeline

TRUTH: Final = "_truth"
"""The column of the label that came, beside the one of the label that was predicted."""
_CLOCKS: Final = timedelta(minutes=5)
"""By which the clocks of predictor and sink may differ."""
_NEAR: Final = 0.01


def read(catalog: Catalog, pipeline: Pipeline) -> pa.Table | None:
    """The newest logged predictions of all versions, those of challengers too; None where none are kept.

    At least ``model.watch.window`` of each, where there are as many: the columns of the stream, id and time.
    """
    stream = pipeline.predictions
    if stream is None:
        return None
    try:
        table = catalog.load_table(stream.table)
    except NoSuchTableError:
        return None
    # A challenger in shadow says as much again.
    count = 2 * declared_model(pipeline).watch.window
    return newest(table, count, [*stream.types, EVENT_ID, EVENT_TIME])


def of_version(rows: pa.Table, version: str, count: int) -> pa.Table:
    """The newest ``count`` predictions with which a version answered, oldest first."""
    own = pc.and_(pc.equal(rows[MODEL_VERSION], version), pc.invert(pc.ends_with(rows[EVENT_ID], SHADOW)))
    return rows.filter(own).sort_by(EVENT_TIME)[-count:]


def labelled(catalog: Catalog, pipeline: Pipeline, rows: pa.Table) -> pa.Table:
    """The predictions whose label has come, with it as the column :data:`TRUTH`.

    A label is an event with the prediction's id; of several the first that came.
    """
    label = declared_model(pipeline).label
    empty = rows.slice(0, 0).append_column(TRUTH, pa.array([], pa.string()))
    if not len(rows):
        return empty
    since = (pc.min(rows[EVENT_TIME]).as_py() - _CLOCKS).isoformat()
    ids = rows[EVENT_ID].combine_chunks()
    try:
        table = catalog.load_table(pipeline.table)
    except NoSuchTableError:
        return empty
    scan = table.scan(row_filter=f"{INGESTED_AT} >= '{since}'", selected_fields=(EVENT_ID, INGESTED_AT, label))
    found = [
        pa.Table.from_batches([batch.filter(pc.is_in(batch[EVENT_ID], value_set=ids.cast(batch[EVENT_ID].type)))])
        for batch in scan.to_arrow_batch_reader()
    ]
    events = pa.concat_tables(found).sort_by(INGESTED_AT) if found else None
    if events is None or not len(events):
        return empty
    events = events.filter(pc.is_valid(events[label]))
    truth = dict(zip(reversed(events[EVENT_ID].to_pylist()), reversed(events[label].to_pylist()), strict=True))
    ours = ids.to_pylist()
    there = pa.array([event_id in truth for event_id in ours])
    values = [truth[event_id] for event_id in ours if event_id in truth]
    return rows.filter(there).append_column(TRUTH, pa.array(values, events.schema.field(label).type))


def same(one: NDArray[np.generic], other: NDArray[np.generic], *, regression: bool) -> NDArray[np.bool_]:
    """Which of two models' predictions are the same, shape (n,); of a regression, within 1 %."""
    if regression:
        return np.isclose(one.astype(np.float64), other.astype(np.float64), rtol=_NEAR, atol=0)
    found: NDArray[np.bool_] = one == other
    return found


def shadowed(pipeline: Pipeline, rows: pa.Table, champion: str, challenger: str, truth: pa.Table) -> Shadowed | None:
    """How a challenger compares with the champion on what both were asked; None where it was asked nothing.

    Args:
        pipeline: whose model it is.
        rows: predictions of all versions.
        champion: the version that answered.
        challenger: the version in shadow.
        truth: the champion's predictions whose label has come, as :func:`labelled` gives them.
    """
    model = declared_model(pipeline)
    said = rows.filter(pc.and_(pc.equal(rows[MODEL_VERSION], challenger), pc.ends_with(rows[EVENT_ID], SHADOW)))
    asked = pc.replace_substring(said[EVENT_ID], SHADOW, "", max_replacements=1).to_pylist()
    theirs = dict(zip(asked, said[model.label].to_pylist(), strict=True))
    ours = rows.filter(pc.equal(rows[MODEL_VERSION], champion))
    pairs = [
        (value, theirs[event_id])
        for event_id, value in zip(ours[EVENT_ID].to_pylist(), ours[model.label].to_pylist(), strict=True)
        if event_id in theirs
    ]
    if not pairs:
        return None
    kind = np.float64 if model.gate.regression else object
    one, other = (np.array(column, dtype=kind) for column in zip(*pairs, strict=True))
    agreement = float(same(one, other, regression=model.gate.regression).mean())
    both = truth.filter(pc.is_in(truth[EVENT_ID], value_set=pa.array(list(theirs), truth.schema.field(EVENT_ID).type)))
    if not len(both):
        return Shadowed(challenger, len(pairs), agreement)
    its = np.array([theirs[event_id] for event_id in both[EVENT_ID].to_pylist()], dtype=kind)
    values = [_metric(model.gate, both[TRUTH].to_numpy(), said) for said in (its, both[model.label].to_numpy())]
    return Shadowed(challenger, len(pairs), agreement, len(both), *values)


def _metric(gate: Gate, truth: NDArray[np.generic], said: NDArray[np.generic]) -> float | None:
    """The gate's metric of predictions alone, where it exists; the log loss needs probabilities that are not logged."""
    if gate.metric == "log_loss":
        return None
    if gate.metric == "accuracy":
        return float((said.astype(object) == truth.astype(object)).mean())
    answers = Answers(truth, said.astype(np.float64).reshape(-1, 1), ())
    return metric(gate.metric, answers) if exists(gate.metric, answers) else None
