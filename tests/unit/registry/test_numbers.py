"""Numbers of versions, as the MLflow server gives them to trainings that are processes of their own.

The server is the one of the image, on the tests' PostgreSQL, as the chart runs it; the lake's catalogue is there too.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from mlflow import MlflowClient
from pyiceberg.catalog.sql import SqlCatalog

from levada import evidence
from levada.config import MlflowSettings, PostgresSettings, Settings
from levada.evidence import EXAMPLE_FILE, EXAMPLE_TAG, MODEL_FILE, RUN_TAG, Record
from levada.pipeline import Pipeline
from levada.registry import tracking
from levada.registry.generation import Generations
from levada.registry.promote import promote
from levada.registry.record import DIGESTS_FILE, DIGESTS_TAG
from levada.registry.train import train
from tests.clock import Clock
from tests.environments import image
from tests.unit.ingest.collecting import free_port

from .conftest import redeclared

Post = Callable[..., None]
Start = Callable[..., subprocess.Popen[str]]
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow warns of its own insides
    pytest.mark.timeout(600),  # a new machine downloads the image's packages first
]

ROOT = Path(__file__).parents[3]
KEY = b"the key of the gate"


@pytest.fixture(scope="module")
def uri(server: PostgresSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A MLflow server, as long as this module's tests run."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    with psycopg.connect(server.url("postgresql"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE mlflow")
    programs = image("mlflow") / "bin"
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "MLFLOW_BACKEND_STORE_URI": server.model_copy(update={"database": "mlflow"}).url("postgresql+psycopg2"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        str(programs / "mlflow"), "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", "--serve-artifacts",
        f"--artifacts-destination={folder / 'artifacts'}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not answers(f"{url}/health"):
            assert running.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def catalog(postgres: PostgresSettings, tmp_path: Path) -> Iterator[SqlCatalog]:
    """The lake as the processes find it by their settings; its files are in a folder."""
    made = SqlCatalog("lake", uri=postgres.url(), warehouse=f"file://{tmp_path}", schema_version="v1")
    yield made
    made.engine.dispose()


@pytest.fixture
def settings(
    uri: str, postgres: PostgresSettings, catalog: SqlCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """What the test's own process and the others are set to."""
    for module in ("train", "promote"):
        monkeypatch.setattr(f"levada.registry.{module}.catalog", lambda _: catalog)  # one that is closed
    (tmp_path / "key").write_bytes(KEY)
    return Settings(
        mlflow=MlflowSettings(uri=uri), gate_key_file=tmp_path / "key", postgres=postgres, pipelines=tmp_path
    )


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Start a process as ``training`` says, for a pipeline; ``environment`` may be that of another clock."""
    here = {name: value for name, value in os.environ.items() if not name.startswith(("LEVADA_", "MLFLOW_"))}
    here |= {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONWARNINGS": "ignore", "LEVADA_S3__REGION": "not asked"}
    given = settings.model_dump(mode="json", include={"mlflow", "postgres", "gate_key_file", "pipelines"})
    for name, value in given.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        here |= {f"LEVADA_{name}{part and '__'}{part}".upper(): str(each) for part, each in parts}
    running = []

    with (tmp_path / "log").open("ab") as log:

        def begin(pipeline: Pipeline, moment: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
            declared = pipeline.model_dump_json(by_alias=True, exclude={"name"})
            (tmp_path / f"{pipeline.name}.json").write_text(declared)
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.unit.registry.training", moment, *arguments],
                    env={**here, "LEVADA_PIPELINE": pipeline.name, **environment}, cwd=ROOT, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )
            )  # fmt: skip
            return running[-1]

        yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def client(settings: Settings, iris: Pipeline) -> Iterator[MlflowClient]:
    """The registry; what a test registers is deleted after it."""
    client = tracking.connect(settings)
    yield client
    client.delete_registered_model(iris.name)


def complete(client: MlflowClient, version: Any) -> str:
    """The run of a version, after everything the version has was found to be that run's."""
    run = client.get_run(version.run_id)
    name: str = run.data.tags[RUN_TAG]
    assert version.tags[RUN_TAG] == run.info.run_name == name
    listed = tracking.download(client, version.run_id, DIGESTS_FILE)
    assert hashlib.sha256(listed).hexdigest() == version.tags[DIGESTS_TAG]
    digests = json.loads(listed)
    for file in (MODEL_FILE, EXAMPLE_FILE):
        assert hashlib.sha256(tracking.download(client, version.run_id, file)).hexdigest() == digests[file], name
    assert digests[EXAMPLE_FILE] == version.tags[EXAMPLE_TAG]
    return name


@pytest.mark.row(48, part="at once, and killed at any moment")
def test_trainings_at_once_have_numbers_of_their_own_and_who_was_killed_leaves_no_half_version(
    client: MlflowClient, settings: Settings, start: Start, iris: Pipeline, rows: list[Any], post: Post, tmp_path: Path
) -> None:
    post(iris, rows)
    moments = {"a": "never", "b": "before", "c": "never", "d": "during", "e": "after", "f": "never"}
    running = {run: start(iris, moment, "train", "--run", run) for run, moment in moments.items()}
    for process in running.values():
        assert process.stdout is not None
        assert "ready\n" in iter(process.stdout.readline, ""), (tmp_path / "log").read_text()[-3000:]
    for process in running.values():
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for run, process in running.items():
        process.communicate()
        assert process.returncode == (0 if moments[run] == "never" else -signal.SIGKILL), run

    def registered() -> dict[str, str]:
        return {str(each.version): complete(client, each) for each in tracking.versions(client, iris.name)}

    before = registered()
    print(f"killed at {moments}: {before}")
    assert len(set(before.values())) == len(before)
    assert {"a", "c", "e", "f"} <= set(before.values()) <= {"a", "c", "d", "e", "f"}
    numbers = {train(settings, iris, run): run for run in moments}  # as Airflow tries again
    assert numbers == registered()
    assert before.items() <= numbers.items()
    assert sorted(map(int, numbers)) == [*range(1, len(moments) + 1)]


@pytest.mark.row(48, part="clocks that are set back")
def test_numbers_and_generations_rise_though_clocks_are_set_back(
    client: MlflowClient, settings: Settings, start: Start, iris: Pipeline, rows: list[Any], post: Post, tmp_path: Path
) -> None:
    post(iris, rows)
    gate = {"floor": 0.2, "leastRows": 20, "calibration": 1.0}
    weak = redeclared(iris, trainer="tests.unit.registry.training:weak", gate=gate)
    better = redeclared(iris, gate=gate)
    clock = Clock(tmp_path)
    assert train(settings, weak, "a") == "1"
    promote(settings, weak, "a")
    for days, arguments in enumerate((["train", "--run=b"], ["promote", "--run=b"], ["rollback", iris.name]), 1):
        clock.set(-days * 86_400)
        process = start(better, "never", *arguments, **clock.environment)
        process.communicate("\n")
        assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert train(settings, better, "c") == "3"
    found = tracking.versions(client, iris.name)
    assert {str(each.version): each.tags[RUN_TAG] for each in found} == {"1": "a", "2": "b", "3": "c"}
    generations = Generations.connect(settings)
    history = [Record.from_json(str(each.record)) for each in generations.history(iris.name)]
    generations.close()
    assert [(each.generation, each.champion) for each in history] == [(1, "1"), (2, "2"), (3, "1")]
    decided = [each.decided_at for each in history]
    assert decided == sorted(set(decided))
    assert evidence.newest(KEY, iris.name, ((str(each.version), each.tags) for each in found)) == history[-1]
    assert str(client.get_model_version_by_alias(iris.name, "champion").version) == "1"
