"""A registry whose champion nobody can prove any more: its rows, tags or the gate's key are not what they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from mlflow import MlflowClient

from levada.config import Settings
from levada.evidence import ALIAS, GATE_TAG, SIGNATURE_TAG
from levada.pipeline import Pipeline
from levada.registry.errors import TrainingError
from levada.registry.promote import Approval, promote
from levada.registry.rollback import rollback
from levada.registry.train import train

from .conftest import champion

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides

WHO = Approval("ada", "looked at after the restore")


def execute(settings: Settings, *statements: str) -> None:
    with psycopg.connect(settings.postgres.url("postgresql")) as connection:  # type: ignore[union-attr]
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def serving(settings: Settings, iris: Pipeline, rows: list[Any], post: Post) -> None:
    """A champion, version 1."""
    post(iris, rows)
    train(settings, iris, "a")
    promote(settings, iris, "a")


@pytest.mark.usefixtures("serving")
@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("history", "registry.history has 1 decision, the last for version 1"),
        ("alias", "the alias champion names version 1"),
        ("record", "the record of version 1 names champion 1"),
    ],
)
def test_whoever_deletes_the_champions_evidence_gets_no_version_past_the_comparison(
    left: str, said: str, settings: Settings, client: MlflowClient, weak: Pipeline
) -> None:
    execute(settings, "DELETE FROM registry.generation")
    if left != "history":
        execute(settings, "DELETE FROM registry.history")
    if left != "alias":
        client.delete_registered_model_alias("iris", ALIAS)
    client.delete_model_version_tag("iris", "1", SIGNATURE_TAG)
    if left != "record":
        client.delete_model_version_tag("iris", "1", GATE_TAG)
    train(settings, weak, "poor")
    waiting = promote(settings, weak, "poor")
    assert (waiting.outcome, waiting.champion) == ("needs approval", None)
    assert waiting.reason.startswith(f"no champion is proven, but there was one: {said}; accuracy")
    approved = promote(settings, weak, "poor", WHO)
    assert (approved.outcome, approved.generation) == ("promoted", 1 + (left == "history"))
    assert champion(client) == "2"


@pytest.mark.usefixtures("serving")
def test_after_the_key_was_changed_the_champion_is_approved_again(
    settings: Settings, client: MlflowClient, iris: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("another key")
    with pytest.raises(TrainingError, match="another hand, or before the gate's key was changed: delete it"):
        promote(settings, iris, "a")
    execute(settings, "DELETE FROM registry.generation")
    assert promote(settings, iris, "a").outcome == "needs approval"
    record = promote(settings, iris, "a", WHO)
    assert (record.outcome, record.champion, record.generation) == ("promoted", "1", 2)
    train(settings, iris, "b")
    assert promote(settings, iris, "b").outcome == "kept"
    with pytest.raises(TrainingError, match=r"no champion before 1 .* 1 of 2 rows of registry\.history"):
        rollback(settings, "iris", WHO)
    assert champion(client) == "1"


@pytest.mark.usefixtures("serving")
def test_a_champion_that_was_approved_again_is_not_the_one_before_itself(
    settings: Settings, client: MlflowClient, iris: Pipeline
) -> None:
    execute(settings, "DELETE FROM registry.generation")
    client.delete_model_version_tag("iris", "1", SIGNATURE_TAG)
    promote(settings, iris, "a")
    assert promote(settings, iris, "a", WHO).generation == 2
    with pytest.raises(TrainingError, match=r"no champion before 1 to go back to$"):
        rollback(settings, "iris", WHO)
