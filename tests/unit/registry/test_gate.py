"""The decision alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from levada.pipeline import Gate
from levada.registry.gate import accuracy, decide

GATE = Gate(floor=0.9, margin=0.005)


@pytest.mark.row(46)
@pytest.mark.parametrize(
    ("value", "champion_value", "outcome"),
    [
        (0.96, 0.95, "promoted"),
        (0.95, 0.95, "kept"),  # a tie
        (0.955, 0.95, "kept"),  # the margin itself is not enough
        (0.905, 0.9, "kept"),  # in binary the difference is a little more than the margin
        (0.9551, 0.95, "promoted"),
        (0.94, 0.95, "kept"),
        (0.89, 0.5, "refused"),  # better, yet below the floor
    ],
)
def test_a_challenger_must_lead_by_more_than_the_margin(value: float, champion_value: float, outcome: str) -> None:
    assert decide(GATE, value, "7", champion_value).outcome == outcome


@pytest.mark.parametrize(("value", "outcome"), [(0.9, "promoted"), (0.8999, "refused")])
def test_a_first_champion_must_reach_the_floor(value: float, outcome: str) -> None:
    assert decide(GATE, value, None, None).outcome == outcome


def test_a_champion_that_cannot_be_scored_yields_and_the_reason_says_so() -> None:
    decision = decide(GATE, 0.95, "3", None, "it predicts color, not species")
    assert decision.outcome == "promoted"
    assert decision.reason == (
        "accuracy 0.9500 reaches the floor 0.9; champion 3 cannot be compared: it predicts color, not species"
    )
    assert decide(GATE, 0.85, "3", None, "it predicts color, not species").outcome == "refused"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_nothing_is_promoted_without_floor_and_lead(value: float, champion: float, floor: float, margin: float) -> None:
    if decide(Gate(floor=floor, margin=margin), value, "1", champion).outcome == "promoted":
        assert value >= floor
        assert value > champion


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert accuracy(["a", "b", "a", "a"], ["a", "a", "a", "b"]) == 0.5
