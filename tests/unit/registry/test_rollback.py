"""Approval and the way back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from mlflow import MlflowClient

from levada import evidence
from levada.config import Settings
from levada.evidence import ALIAS, GATE_TAG
from levada.pipeline import Pipeline
from levada.registry import tracking
from levada.registry.errors import TrainingError
from levada.registry.evaluate import evaluate
from levada.registry.promote import Approval, promote
from levada.registry.rollback import rollback
from levada.registry.train import train

from .conftest import MEASURES, champion
from .test_stream import SHIFT, Garden, minute

Post = Callable[..., None]
Rows = list[dict[str, Any]]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides

KEY = b"the key of the gate"
WHO = Approval("ada", "the scale was repaired")


def newest(client: MlflowClient, *versions: str) -> evidence.Record:
    """What a predictor believes that sees these versions only."""
    tags = [(number, client.get_model_version("iris", number).tags) for number in versions]
    found = evidence.newest(KEY, "iris", tags)
    assert found is not None
    return found


def irises(rows: Rows) -> tuple[Any, Any]:
    return (
        np.array([[row[name] for name in MEASURES] for row in rows]),
        np.array([row["species"] for row in rows], dtype=object),
    )


def as_rows(values: Any, labels: Any) -> Rows:
    return [
        {**dict(zip(MEASURES, row, strict=True)), "species": label}
        for row, label in zip(values.tolist(), labels.tolist(), strict=True)
    ]


@pytest.fixture
def two(settings: Settings, weak: Pipeline, iris: Pipeline, rows: Rows, post: Post) -> None:
    """A champion, version 2, and a weak one before it, version 1."""
    post(iris, rows)
    for pipeline, run in ((weak, "weak"), (iris, "all")):
        train(settings, pipeline, run)
        assert promote(settings, pipeline, run).outcome == "promoted"


@pytest.mark.row(47, part="one timed command")
@pytest.mark.usefixtures("two")
def test_a_roll_back_is_one_signed_record_and_takes_seconds(
    settings: Settings, client: MlflowClient, iris: Pipeline
) -> None:
    before = client.get_model_version("iris", "1").tags[GATE_TAG]
    started = time.monotonic()
    record = rollback(settings, "iris", WHO)
    print(f"rolled back in {time.monotonic() - started:.2f} s")
    assert time.monotonic() - started < 30
    assert (record.outcome, record.version, record.champion, record.generation) == ("rolled back", "2", "1", 3)
    assert (record.approved_by, record.approved_why) == ("ada", "the scale was repaired")
    assert champion(client) == "1"
    assert client.get_model_version("iris", "1").tags[GATE_TAG] == before  # the gate's word of it stays
    assert newest(client, "1", "2") == newest(client, "1") == newest(client, "2") == record
    with pytest.raises(TrainingError, match="no champion before 1 to go back to"):
        rollback(settings, "iris", WHO)
    # Its run asked again does not bring it back, nor does the alias.
    client.set_registered_model_alias("iris", ALIAS, "2")
    promote(settings, iris, "all")
    assert champion(client) == "1"
    train(settings, iris, "next")
    assert promote(settings, iris, "next").outcome == "promoted"
    assert newest(client, "1", "2", "3").champion == "3"
    assert rollback(settings, "iris", WHO).champion == "1"


@pytest.mark.usefixtures("two")
def test_a_roll_back_that_is_cut_off_is_finished_by_the_next_gate(
    settings: Settings, client: MlflowClient, iris: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_model_version_tag", die)
        with pytest.raises(SystemExit):
            rollback(settings, "iris", WHO)
    assert champion(client) == "2"
    promote(settings, iris, "all")
    assert champion(client) == newest(client, "1", "2").champion == "1"


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE registry.history SET record = replace(record, 'accuracy', 'precision') WHERE generation = 2",
        "UPDATE registry.history SET signature = 'x' WHERE generation = 2",
        "UPDATE registry.history SET record = '{' WHERE generation = 2",
        "UPDATE registry.history SET champion = '2' WHERE generation = 1",
        "INSERT INTO registry.history SELECT pipeline, 9, champion, decided_at, record, signature"
        " FROM registry.history WHERE generation = 2",
    ],
)
def test_a_row_of_the_history_that_another_hand_wrote_leads_nowhere(
    change: str, settings: Settings, client: MlflowClient
) -> None:
    with psycopg.connect(settings.postgres.url("postgresql")) as connection:  # type: ignore[union-attr]
        connection.execute(change)
    assert rollback(settings, "iris", WHO).champion == "1"
    assert champion(client) == "1"
    with pytest.raises(TrainingError, match="no champion before 1 to go back to"):
        rollback(settings, "iris", WHO)


@pytest.mark.usefixtures("two")
def test_a_history_without_a_signed_row_has_no_way_back(settings: Settings, client: MlflowClient) -> None:
    with psycopg.connect(settings.postgres.url("postgresql")) as connection:  # type: ignore[union-attr]
        connection.execute("UPDATE registry.history SET signature = 'x'")
    with pytest.raises(TrainingError, match=r"no champion before 2 .* 2 of 2 rows of registry\.history are not signed"):
        rollback(settings, "iris", WHO)
    assert champion(client) == "2"


@pytest.mark.row(44, part="benign shift, approved")
def test_shifted_data_waits_for_a_person_whose_name_and_reason_are_kept(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "a")
    promote(settings, iris, "a")
    values, labels = Garden(irises(rows), 3).pick(300)
    post(iris, as_rows(values + SHIFT, labels))
    train(settings, iris, "b")
    verdict = evaluate(settings, iris, "b")
    assert verdict.outcome == "needs approval"
    assert GATE_TAG not in client.get_model_version("iris", "2").tags  # an evaluation decides nothing
    run_id = client.get_model_version("iris", "2").run_id
    assert b"alarm: sepal_length" in tracking.download(client, run_id, "gate/evaluation.html")

    waiting = promote(settings, iris, "b")
    assert (waiting.outcome, waiting.champion, waiting.generation) == ("needs approval", "1", 1)
    assert "alarm: sepal_length" in waiting.reason
    assert champion(client) == "1"
    assert promote(settings, iris, "b") == waiting

    approved = promote(settings, iris, "b", WHO)
    assert (approved.outcome, approved.champion, approved.generation) == ("promoted", "2", 2)
    assert (approved.approved_by, approved.approved_why) == ("ada", "the scale was repaired")
    assert champion(client) == newest(client, "1", "2").champion == "2"
    assert promote(settings, iris, "b", WHO) == approved
    page = tracking.download(client, run_id, "gate/report.html").decode()
    assert "Approved by ada: the scale was repaired" in page


def test_only_what_waits_for_approval_can_be_approved(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, post: Post
) -> None:
    post(iris, rows)
    for run in ("a", "b"):
        train(settings, iris, run)
        promote(settings, iris, run)
    with pytest.raises(TrainingError, match="version 2 of iris was kept: only a version that needs approval"):
        promote(settings, iris, "b", WHO)
    train(settings, iris, "never-judged")
    with pytest.raises(TrainingError, match="version 3 of iris was kept"):
        promote(settings, iris, "never-judged", WHO)
    assert champion(client) == "1"


@pytest.mark.row(44, part="minutes 1, 2 and 30 through registry, lake and database")
def test_poison_through_the_whole_gate_is_never_promoted(
    settings: Settings, client: MlflowClient, iris: Pipeline, rows: Rows, post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "start")
    promote(settings, iris, "start")
    poison = as_rows(*minute(irises(rows)))
    passed = 0
    for wanted in (1, 2, 30):
        post(iris, poison * (wanted - passed))
        passed = wanted
        train(settings, iris, f"minute-{wanted}")
        record = promote(settings, iris, f"minute-{wanted}")
        print(f"minute {wanted}: {record.outcome}: {record.reason}")
        assert record.outcome in ("needs approval", "refused")
        assert champion(client) == record.champion == "1"
