"""A lake on SQLite and files, MLflow's own store on files, and a PostgreSQL of the tests' own: all real."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyiceberg.catalog.sql import SqlCatalog

from levada import lake
from levada.config import MlflowSettings, PostgresSettings, Settings
from levada.evidence import ALIAS
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry import tracking
from levada.registry.contract import Context

Row = dict[str, Any]
MEASURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
IRIS = {
    "fields": {**{name: {"type": "double"} for name in MEASURES}, "species": {"type": "string"}},
    "model": {"label": "species", "gate": {"floor": 0.9, "margin": 0.005, "leastRows": 20}},
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


def snapshot(rows: list[Row], first: int = 0) -> pa.Table:
    """Rows as a snapshot of the lake gives them; each came a second after the one before, the first at ``first``."""
    table = pa.Table.from_pylist(rows)
    ids = [f"{number:09}" for number in range(first, first + len(rows))]
    times = pa.array([(first + number) * 1_000_000 for number in range(len(rows))], pa.timestamp("us", tz="UTC"))
    columns = {"_event_id": pa.array(ids), "_event_time": times, "_ingested_at": times}
    return pa.table({**{name: table[name] for name in table.column_names}, **columns})


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


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresSettings]:
    """A PostgreSQL that lives as long as the tests, where the machine has one installed."""
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL on this machine: install the Debian package postgresql")
    # PostgreSQL refuses to run as root; /tmp, because another user cannot enter the tests' own folder.
    folder = Path(f"/tmp/levada-registry-{os.getpid()}")
    folder.mkdir(mode=0o777)
    user = []
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    try:
        subprocess.run(
            [*user, initdb, "--pgdata", f"{folder}/data", "--username=levada", "--auth=trust", "--no-sync"],
            check=True, capture_output=True, cwd=folder,
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        credentials = tmp_path_factory.mktemp("postgres")
        (credentials / "username").write_text("levada")
        (credentials / "password").write_text("not asked for")
        running = subprocess.Popen(
            [*user, postgres, "-D", f"{folder}/data", "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        try:
            settings = PostgresSettings(
                host="127.0.0.1", port=port, sslmode="disable", database="postgres", credentials=credentials
            )
            _wait_for(settings)
            yield settings
        finally:
            running.terminate()
            running.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(settings: PostgresSettings) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with psycopg.connect(settings.url("postgresql")):
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture
def postgres(server: PostgresSettings) -> PostgresSettings:
    """The tests' PostgreSQL, without any table of an earlier test."""
    with psycopg.connect(server.url("postgresql"), autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS registry CASCADE")
    return server


@pytest.fixture
def settings(
    tmp_path: Path, catalog: SqlCatalog, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings whose lake is :func:`catalog` and whose MLflow is a folder."""
    for module in ("train", "promote", "evaluate", "replay", "watch"):
        monkeypatch.setattr(f"levada.registry.{module}.catalog", lambda _: catalog)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    key = tmp_path / "key"
    key.write_text("the key of the gate")
    return Settings(mlflow=MlflowSettings(uri=f"file://{tmp_path}/mlruns"), gate_key_file=key, postgres=postgres)


@pytest.fixture
def client(settings: Settings) -> MlflowClient:
    """The registry of :func:`settings`."""
    return tracking.connect(settings)


@pytest.fixture
def weak(iris: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Iris with a trainer that learns badly and a low floor."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def build(rows: pa.Table, pipeline: Pipeline, _: Context) -> Any:
        columns = ColumnTransformer([("all", "passthrough", list(pipeline.features))])
        frame = rows.to_pandas()
        return make_pipeline(columns, LogisticRegression(C=1e-4)).fit(frame, frame["species"])

    module = ModuleType("weak_trainer")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "weak_trainer", module)
    monkeypatch.setattr("inspect.getsource", lambda _: "weak")
    return redeclared(iris, trainer="weak_trainer:build", gate={"floor": 0.2, "leastRows": 20, "calibration": 1.0})


def redeclared(pipeline: Pipeline, **model: Any) -> Pipeline:
    """The same pipeline with other keys in its model block."""
    before = pipeline.model_dump(exclude={"name"})
    return parse_pipeline({**before, "model": {**before["model"], **model}}, pipeline.name)


def champion(client: MlflowClient) -> str | None:
    """The version that the alias names."""
    aliases = client.get_registered_model("iris").aliases
    return str(aliases[ALIAS]) if ALIAS in aliases else None
