"""What training and the gate read: one snapshot of the lake, each event once."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from levada.registry.errors import NotEnoughData, TrainingError
from levada.scoring import Feature

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from levada.pipeline import Model, Pipeline

MIN_ROWS: Final = 30
PINNED: Final = timedelta(days=90)
"""How long a snapshot that was trained on is kept by its tag."""
EVENT_ID: Final = "_event_id"
EVENT_TIME: Final = "_event_time"
INGESTED_AT: Final = "_ingested_at"


def declared_model(pipeline: Pipeline) -> Model:
    """The pipeline's model block.

    Raises:
        TrainingError: it has none.
    """
    if pipeline.model is None:
        raise TrainingError(f"pipeline {pipeline.name} declares no model: add a model block with a label")
    return pipeline.model


def features_of(pipeline: Pipeline) -> tuple[Feature, ...]:
    """The model inputs that the declaration asks for."""
    fields = pipeline.fields
    return tuple(Feature(name, fields[name].type, fields[name].required) for name in pipeline.features)


def judged_fields(pipeline: Pipeline) -> tuple[Feature, ...]:
    """Every field that may be a feature, whether it is one now or not: what the frozen evaluation set keeps."""
    hidden = {declared_model(pipeline).label, pipeline.key} | pipeline.sensitive
    return tuple(
        Feature(name, field.type, field.required)
        for name, field in pipeline.fields.items()
        if name not in hidden and field.type != "timestamp"
    )


@retry(
    retry=retry_if_exception_type(CommitFailedException),
    stop=stop_after_attempt(10),
    wait=wait_random_exponential(multiplier=0.1, max=5),
    reraise=True,
)
def pin(table: Table, run: str) -> int:
    """Tag the current snapshot for a run and return its id; a run that was pinned before keeps its snapshot.

    The sink commits to the same table all the time; losing that race means to look again.

    Raises:
        NotEnoughData: the table has no snapshot.
    """
    tag = "train-" + re.sub(r"[^A-Za-z0-9_.-]", "-", run)
    table.refresh()
    if (known := table.metadata.refs.get(tag)) is not None:
        return known.snapshot_id
    snapshot = table.current_snapshot()
    if snapshot is None:
        raise NotEnoughData(f"table {'.'.join(table.name())} is empty: post events and run again")
    age = int(PINNED.total_seconds() * 1000)
    table.manage_snapshots().create_tag(snapshot.snapshot_id, tag, max_ref_age_ms=age).commit()
    return snapshot.snapshot_id


def read(catalog: Catalog, pipeline: Pipeline, run: str) -> tuple[int, pa.Table]:
    """The labelled rows of a pipeline's table and the id of their snapshot, which is pinned for the run.

    Returns:
        Snapshot id, and rows as :func:`read_at` gives them.

    Raises:
        NotEnoughData: there is no table yet, or too little in it.
        TrainingError: the table lacks a declared field.
    """
    table = _table(catalog, pipeline)
    snapshot = pin(table, run)
    rows = read_at(catalog, pipeline, snapshot)
    label = declared_model(pipeline).label
    if len(rows) < MIN_ROWS:
        raise NotEnoughData(
            f"table {'.'.join(pipeline.table)} has {len(rows)} labelled rows at snapshot {snapshot}, "
            f"training needs {MIN_ROWS}: post more events and run again"
        )
    if pc.count_distinct(rows[label]).as_py() < 2:
        raise NotEnoughData(f"{label} has one value only in {'.'.join(pipeline.table)}: a model needs two")
    return snapshot, rows


def read_at(catalog: Catalog, pipeline: Pipeline, snapshot: int) -> pa.Table:
    """The labelled rows of one snapshot, each event once, in the order of their event ids.

    The columns are all fields that may be features, the label, the field that the split goes by, and when an event
    happened and came.

    Raises:
        TrainingError: the table lacks a declared field, or the snapshot is gone.
    """
    table = _table(catalog, pipeline)
    model = declared_model(pipeline)
    names = [field.name for field in judged_fields(pipeline)] + [model.label]
    if model.split.field is not None and model.split.field not in names:
        names.append(model.split.field)
    names += [EVENT_ID, EVENT_TIME, INGESTED_AT]
    absent = [name for name in names if name not in table.schema().column_names]
    if absent:
        raise TrainingError(f"table {'.'.join(pipeline.table)} has no column {', '.join(absent)}: does the sink run?")
    rows = _scan(table, snapshot, names)
    # Sorted, so that the same snapshot always gives the same model; an event id is kept once.
    rows = rows.sort_by(EVENT_ID)
    ids = rows[EVENT_ID].to_numpy()
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    rows = rows.filter(pa.array(first))
    return rows.filter(pc.is_valid(rows[model.label]))


def event_ids(catalog: Catalog, pipeline: Pipeline, snapshot: int) -> pa.ChunkedArray | None:
    """The event ids in one snapshot; None when the snapshot is gone.

    They say what came since: offsets begin anew where a topic was replaced, and clocks are set back.
    """
    try:
        return _scan(_table(catalog, pipeline), snapshot, [EVENT_ID])[EVENT_ID]
    except TrainingError:
        return None


def _scan(table: Table, snapshot: int, names: list[str]) -> pa.Table:
    if table.snapshot_by_id(snapshot) is None:
        raise TrainingError(
            f"table {'.'.join(table.name())} has no snapshot {snapshot} any more, its tag ends after {PINNED.days} "
            "days: train again"
        )
    return table.scan(snapshot_id=snapshot, selected_fields=tuple(names)).to_arrow()


def _table(catalog: Catalog, pipeline: Pipeline) -> Table:
    try:
        return catalog.load_table(pipeline.table)
    except NoSuchTableError as error:
        raise NotEnoughData(f"table {'.'.join(pipeline.table)} does not exist yet: post events first") from error
