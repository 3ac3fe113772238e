"""What the gate is shown: which champion can be compared, on which rows, and what the new data is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from levada.config import Settings
from levada.pipeline import Pipeline, parse_pipeline
from levada.registry.case import assemble
from levada.registry.compare import Answers
from levada.registry.dataset import sides
from levada.registry.errors import TrainingError
from levada.registry.promote import Approval, promote
from levada.registry.train import train

from .conftest import snapshot

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides
CLASSES = {"metric": "accuracy", "floor": 0.7, "leastRows": 20, "calibration": 1.0}
NUMBERS = {"metric": "rmse", "floor": 1.0, "leastRows": 20}


def late(gate: dict[str, Any]) -> Pipeline:
    """Whether a train is late, as a long: a class or a number, as the gate says."""
    fields = {"wind": {"type": "double"}, "late": {"type": "long"}}
    return parse_pipeline({"fields": fields, "model": {"label": "late", "gate": gate}}, "trains")


@pytest.mark.parametrize(("first", "then"), [(CLASSES, NUMBERS), (NUMBERS, CLASSES)])
def test_a_champion_of_the_other_kind_is_for_a_person(
    first: dict[str, Any], then: dict[str, Any], settings: Settings, post: Post
) -> None:
    wind = np.random.default_rng(5).normal(size=300)
    post(late(first), [{"wind": float(one), "late": int(one > 0)} for one in wind])
    train(settings, late(first), "a")
    assert promote(settings, late(first), "a").outcome == "promoted"
    train(settings, late(then), "b")
    record = promote(settings, late(then), "b")
    assert (record.outcome, record.champion_value) == ("needs approval", None)
    assert "champion 1 cannot be compared: it predicts a" in record.reason
    assert promote(settings, late(then), "b", Approval("ada", "hours instead of yes and no")).outcome == "promoted"


def test_a_version_of_another_kind_than_the_declaration_is_told_to_train_again(settings: Settings, post: Post) -> None:
    wind = np.random.default_rng(5).normal(size=300)
    post(late(CLASSES), [{"wind": float(one), "late": int(one > 0)} for one in wind])
    train(settings, late(CLASSES), "a")
    with pytest.raises(TrainingError, match="version 1 of trains predicts a class, gate.metric rmse judges numbers"):
        promote(settings, late(NUMBERS), "a")


def test_r2_of_one_number_is_refused_with_what_to_do() -> None:
    pipeline = late({"metric": "r2", "floor": 0.5})
    split = sides(snapshot([{"wind": float(n), "late": 0} for n in range(100)]), pipeline)
    with pytest.raises(TrainingError, match="r2 says nothing of trains: all 1[0-9] rows of the evaluation set have"):
        assemble(pipeline, split, None, lambda rows: Answers(rows.labels, np.zeros((len(rows), 1)), ()), None)
