"""The decision alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levada.pipeline import Gate
from levada.registry.checks import Check
from levada.registry.compare import Answers, chance, lead, metric
from levada.registry.dataset import Dataset
from levada.registry.gate import Case, Champion, Verdict, judge
from levada.registry.report import to_json

GATE = Gate(floor=0.9, margin=0.005, least_rows=100, calibration=1.0)


def answers(right: Sequence[bool]) -> Answers:
    """Answers for rows that are all "a": certain, and right or wrong as given."""
    correct = np.array(right, dtype=bool)
    scores = np.stack([correct, ~correct], axis=1).astype(float)
    return Answers(np.full(len(correct), "a", dtype=object), scores, ("a", "b"))


def first_right(number: int, rows: int = 1000) -> Answers:
    return answers(np.arange(rows) < number)  # type: ignore[arg-type]


def rows(number: int = 1000, **columns: Any) -> Dataset:
    made = {name: np.array(column, dtype=object) for name, column in columns.items()}
    return Dataset((), "label", made, np.full(number, "a", dtype=object))


def case(ours: Answers, theirs: Answers | None, **rest: Any) -> Case:
    champion = Champion("7", theirs) if theirs is not None else None
    return Case(rows(len(ours)), ours, champion, **rest)


ALARM = Check("new", "x", 3.0, 1e-9, True, "x: far away")


@pytest.mark.row(46)
@pytest.mark.parametrize(
    ("value", "champion_value", "outcome"),
    [
        (960, 950, "promoted"),
        (950, 950, "kept"),  # a tie
        (955, 950, "kept"),  # the margin itself is not enough
        (905, 900, "kept"),  # in binary the difference is a little more than the margin
        (956, 950, "kept"),  # more than the margin, but six rows may be luck: p is 1/64
        (957, 950, "promoted"),  # seven are not: p is 1/128
        (940, 950, "kept"),
        (890, 500, "refused"),  # better, yet below the floor
    ],
)
def test_a_challenger_must_lead_by_more_than_margin_and_luck(value: int, champion_value: int, outcome: str) -> None:
    assert judge(GATE, case(first_right(value), first_right(champion_value))).outcome == outcome


@pytest.mark.parametrize(("value", "outcome"), [(900, "promoted"), (899, "refused")])
def test_a_first_champion_must_reach_the_floor(value: int, outcome: str) -> None:
    assert judge(GATE, case(first_right(value), None)).outcome == outcome


def test_a_first_champion_where_there_was_one_is_for_a_person() -> None:
    alone = case(first_right(950), None)
    verdict = judge(GATE, alone, earlier="the alias champion names version 3")
    assert (verdict.outcome, verdict.reasons[0]) == (
        "needs approval",
        "no champion is proven, but there was one: the alias champion names version 3",
    )
    assert judge(GATE, alone, earlier="x", approved=True).outcome == "promoted"
    assert judge(GATE, case(first_right(850), None), earlier="x", approved=True).outcome == "refused"
    assert judge(GATE, case(first_right(990), first_right(950)), earlier="x").outcome == "promoted"


def test_a_small_frozen_set_promotes_nobody_but_the_first() -> None:
    better = case(first_right(89, 90), first_right(70, 90))
    assert judge(GATE, case(first_right(89, 90), None)).outcome == "promoted"
    verdict = judge(GATE, better)
    assert verdict.outcome == "needs approval"
    assert verdict.reasons[0] == "the frozen evaluation set has 90 rows, leastRows asks for 100"
    assert judge(GATE, better, approved=True).outcome == "promoted"
    assert judge(GATE, case(first_right(85, 90), first_right(85, 90))).outcome == "kept"


def test_an_alarm_is_for_a_person_however_good_the_model_looks() -> None:
    suspicious = case(first_right(1000), first_right(950), checks=[ALARM])
    verdict = judge(GATE, suspicious)
    assert (verdict.outcome, verdict.alarms) == ("needs approval", ["x: far away"])
    assert verdict.reasons[0] == "alarm: x: far away"
    assert judge(GATE, suspicious, approved=True).outcome == "promoted"


def test_no_approval_lifts_the_floor() -> None:
    poor = case(first_right(890), first_right(950), checks=[ALARM])
    assert judge(GATE, poor, approved=True).outcome == "refused"


def test_a_champion_that_cannot_be_asked_is_for_a_person() -> None:
    lost = Case(rows(), first_right(950), Champion("3", incomparable="it predicts color"))
    verdict = judge(GATE, lost)
    assert verdict.outcome == "needs approval"
    assert verdict.reasons[0] == "champion 3 cannot be compared: it predicts color"
    assert judge(GATE, Case(rows(), first_right(850), lost.champion)).outcome == "refused"


def test_a_challenger_that_is_worse_on_recent_rows_is_kept() -> None:
    champion = Champion("7", first_right(950), first_right(190, 200))
    verdict = judge(GATE, Case(rows(), first_right(990), champion, first_right(150, 200)))
    assert verdict.outcome == "kept"
    assert verdict.reasons[1] == "worse on recent rows: 0.7500, champion 0.9500"


def test_each_value_of_a_slice_must_reach_its_own_floor() -> None:
    gate = Gate(floor=0.8, slices={"plan": 0.85}, calibration=1.0)
    plans = ["basic"] * 900 + ["gold"] * 96 + ["rare"] * 4
    sliced = Case(rows(plan=plans), first_right(950))
    verdict = judge(gate, sliced)
    assert (verdict.outcome, verdict.reasons) == (
        "refused",
        ["accuracy 0.5208 where plan is gold misses its floor 0.85"],
    )
    assert [(one.value, one.rows, one.holds) for one in verdict.slices] == [
        ("basic", 900, True),
        ("gold", 96, False),
        ("rare", 4, True),  # too few to be judged
    ]
    assert [one.judged for one in verdict.slices] == [True, True, False]


def sliced(columns: dict[str, Any], ours: Answers, metric: str = "accuracy") -> Verdict:
    """What a gate with a floor of 0.8 for every slice says of a challenger, after what it says is made a report."""
    gate = Gate(metric=metric, floor=0.5, slices=dict.fromkeys(columns, 0.8), calibration=1.0)
    made = {name: np.array(column, dtype=float) for name, column in columns.items()}
    data = Dataset((), "label", made, ours.truth)
    verdict = judge(gate, Case(data, ours))
    to_json(asdict(verdict))
    return verdict


@pytest.mark.parametrize(("right", "outcome"), [(60, "promoted"), (40, "refused")])
def test_rows_without_a_number_are_one_slice(right: int, outcome: str) -> None:
    rooms = [1.0, 2.0] * 50 + [np.nan] * 60
    verdict = sliced({"rooms": rooms}, first_right(100 + right, 160))
    assert [(one.value, one.rows, one.judged) for one in verdict.slices] == [
        ("1.0", 50, True), ("2.0", 50, True), ("missing", 60, True),
    ]  # fmt: skip
    assert verdict.outcome == outcome


def test_a_slice_without_its_metric_is_shown_and_not_judged() -> None:
    truth = np.append(np.linspace(0, 1, 50), [3.0] * 10)
    ours = Answers(truth, truth[:, None] + 0.01, ())
    verdict = sliced({"rooms": [1.0] * 50 + [2.0] * 10}, ours, "r2")
    assert verdict.outcome == "promoted"
    assert [(one.metric is None, one.judged, one.holds) for one in verdict.slices] == [
        (False, True, True),
        (True, False, True),
    ]


def test_recent_rows_without_the_metric_judge_nobody() -> None:
    truth = np.linspace(0, 1, 200)
    ours, theirs = (Answers(truth, truth[:, None] + error, ()) for error in (0.0, 0.2))
    recent = Answers(np.full(20, 0.5), np.full((20, 1), 0.6), ())
    gate = Gate(metric="r2", floor=0.1)
    verdict = judge(gate, Case(Dataset((), "label", {}, truth), ours, Champion("7", theirs, recent), recent))
    to_json(asdict(verdict))
    assert (verdict.outcome, verdict.recent_value) == ("promoted", None)


def test_a_slice_that_the_frozen_rows_do_not_know_is_for_a_person() -> None:
    gate = Gate(floor=0.8, slices={"plan": 0.85}, calibration=1.0)
    unknown = case(first_right(950), first_right(950))
    verdict = judge(gate, unknown)
    assert verdict.outcome == "needs approval"
    assert verdict.reasons[0] == (
        "the frozen evaluation set has no plan, which model.gate.slices names: approve, so that rows with it become "
        "the set, or take the slice out"
    )
    assert judge(gate, unknown, approved=True).outcome == "promoted"


def test_probabilities_that_do_not_mean_what_they_say_are_refused() -> None:
    truth = np.array(["a", "b"] * 500, dtype=object)
    certain = np.tile([[1.0, 0.0]], (1000, 1))
    verdict = judge(Gate(floor=0.4), Case(rows(), Answers(truth, certain, ("a", "b"))))
    assert (verdict.outcome, verdict.calibration) == ("refused", 0.5)
    assert verdict.reasons == ["expected calibration error 0.500 is above 0.2"]


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0, 1), st.floats(0, 0.5))
def test_nothing_is_promoted_without_floor_and_lead(value: int, champion: int, floor: float, margin: float) -> None:
    gate = Gate(floor=floor, margin=margin, calibration=1.0)
    if judge(gate, case(first_right(value, 300), first_right(champion, 300))).outcome == "promoted":
        assert value / 300 >= floor
        assert value > champion


def test_mcnemar_is_the_binomial_of_the_rows_where_they_differ() -> None:
    ours, theirs = answers([True] * 9 + [False] + [True] * 90), answers([False] * 9 + [True] + [True] * 90)
    assert chance(GATE, ours, theirs) == pytest.approx(11 / 1024)  # at most one of ten for the champion
    assert chance(GATE, ours, ours) == 1.0


def test_every_metric_is_what_scikit_learn_says() -> None:
    from sklearn import metrics

    chance_of = np.random.default_rng(1)
    truth, scores = chance_of.choice(["a", "b", "c"], 200).astype(object), chance_of.dirichlet((1, 1, 1), 200)
    classes = Answers(truth, scores, ("a", "b", "c"))
    best = np.array(["a", "b", "c"])[scores.argmax(axis=1)]
    assert metric("accuracy", classes) == pytest.approx(metrics.accuracy_score(truth.astype(str), best))
    assert metric("log_loss", classes) == pytest.approx(metrics.log_loss(truth.astype(str), scores))
    values = chance_of.normal(size=(2, 200))
    numbers = Answers(values[0], values[1][:, None], ())
    assert metric("rmse", numbers) == pytest.approx(metrics.root_mean_squared_error(*values))
    assert metric("r2", numbers) == pytest.approx(metrics.r2_score(*values))


@pytest.mark.parametrize(("name", "floor"), [("log_loss", 2.0), ("rmse", 2.0), ("r2", 0.1)])
def test_the_other_metrics_are_judged_by_the_paired_bootstrap(name: Any, floor: float) -> None:
    chance_of = np.random.default_rng(2)
    truth = chance_of.normal(size=400)
    gate = Gate(metric=name, floor=floor, margin=0.01, calibration=1.0)
    if gate.regression:
        made = {
            noise: Answers(truth, (truth + noise * chance_of.normal(size=400))[:, None], ()) for noise in (0.5, 0.8)
        }
    else:
        labels = np.where(truth > 0, "a", "b").astype(object)
        made = {}
        for noise in (0.5, 0.8):
            p = 1 / (1 + np.exp(-(10 * truth + 10 * noise * chance_of.normal(size=400))))
            made[noise] = Answers(labels, np.stack([p, 1 - p], axis=1), ("a", "b"))
    data = Dataset((), "label", {}, truth)
    assert judge(gate, Case(data, made[0.5], Champion("1", made[0.8]))).outcome == "promoted"
    assert judge(gate, Case(data, made[0.8], Champion("1", made[0.5]))).outcome == "kept"
    assert judge(gate, Case(data, made[0.8], Champion("1", made[0.8]))).outcome == "kept"
    assert lead(gate, 0.5, 0.4) * (1 if gate.higher_is_better else -1) == pytest.approx(0.1)
