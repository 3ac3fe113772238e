"""A lake on SQLite and files, and MLflow's own store on files: all real, none needs a server."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from levada import lake
from levada.config import MlflowSettings, Settings
from levada.pipeline import Pipeline, parse_pipeline

Row = dict[str, Any]
MEASURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
IRIS = {
    "fields": {**{name: {"type": "double"} for name in MEASURES}, "species": {"type": "string"}},
    "model": {"label": "species", "gate": {"floor": 0.9, "margin": 0.005}},
}


@pytest.fixture
def iris() -> Pipeline:
    """The iris pipeline without its rules."""
    return parse_pipeline(IRIS, "iris")


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    """The 150 rows of the example."""
    path = Path(__file__).parents[3] / "examples" / "iris" / "iris.csv"
    with path.open() as file:
        return [{**row, **{name: float(row[name]) for name in MEASURES}} for row in csv.DictReader(file)]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    """An empty lake."""
    made = SqlCatalog("lake", uri=f"sqlite:///{tmp_path}/lake.db", warehouse=f"file://{tmp_path}", schema_version="v1")
    yield made
    made.engine.dispose()


@pytest.fixture
def post(catalog: SqlCatalog) -> Callable[..., None]:
    """Append rows to a pipeline's table as a sink does; ``ids`` are the event ids, new ones by default."""
    count = iter(range(10**9))

    def append(pipeline: Pipeline, rows: list[Row], ids: list[str] | None = None) -> None:
        lake.ensure_table(catalog, pipeline)
        now = datetime.now(UTC)
        numbers = [next(count) for _ in rows]
        events = [
            {**row, "_event_id": event_id, "_event_time": now, "_ingested_at": now, "_topic": pipeline.name,
             "_partition": 0, "_offset": number}
            for row, number, event_id in zip(rows, numbers, ids or [f"{n:09}" for n in numbers], strict=True)
        ]  # fmt: skip
        catalog.load_table(pipeline.table).append(pa.Table.from_pylist(events, schema=lake.arrow_schema(pipeline)))

    return append


@pytest.fixture
def settings(tmp_path: Path, catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose lake is :func:`catalog` and whose MLflow is a folder."""
    monkeypatch.setattr("levada.registry.train.catalog", lambda _: catalog)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    key = tmp_path / "key"
    key.write_text("the key of the gate")
    return Settings(mlflow=MlflowSettings(uri=f"file://{tmp_path}/mlruns"), gate_key_file=key)
