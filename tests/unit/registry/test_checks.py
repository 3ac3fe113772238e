"""The statistics on data and probabilities, against numbers worked out elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from levada.pipeline import Drift
from levada.registry.checks import check, counts, duplicates, psi
from levada.registry.compare import Answers, brier, calibration_error, reliability
from levada.registry.dataset import Dataset
from levada.scoring import Feature

CHANCE = np.random.default_rng(8)


def dataset(values: list[float] | np.ndarray, labels: list[str] | None = None, kind: str = "double") -> Dataset:
    column = np.array(values, dtype=object if kind == "string" else float)
    return Dataset(
        (Feature("x", kind, True),), "y", {"x": column}, np.array(labels or ["a"] * len(column), dtype=object)
    )


def alarms(baseline: Dataset, rows: Dataset) -> set[str]:
    return {one.what for one in check(Drift(), {"new": rows}, baseline) if one.alarm}


def test_a_champion_that_never_erred_is_compared_in_numbers_that_a_report_can_hold() -> None:
    def numbers(truth: float, count: int) -> tuple[Dataset, Answers]:
        rows = Dataset((Feature("x", "double", True),), "y", {"x": CHANCE.normal(size=count)}, np.full(count, truth))
        return rows, Answers(rows.labels, np.full((count, 1), 5.0), ())

    (before, frozen), (same, right), (other, wrong) = numbers(5.0, 60), numbers(5.0, 40), numbers(99.0, 40)
    for rows, answers, alarmed in ((same, right, False), (other, wrong, True)):
        found = check(Drift(), {"new": rows}, before, frozen, {"new": answers}, regression=True)
        (one,) = [each for each in found if each.what == "champion"]
        assert one.alarm == alarmed
        json.dumps([asdict(each) for each in found], allow_nan=False)


def test_psi_is_the_sum_over_bins() -> None:
    expected, found = np.array([500, 300, 200]) * 1000, np.array([400, 300, 300]) * 1000
    assert psi(expected, found) == pytest.approx(-0.1 * np.log(0.8) + 0.1 * np.log(1.5), abs=1e-5)
    assert psi(expected, expected) == 0.0
    assert np.isfinite(psi(np.array([10, 0]), np.array([0, 10])))


def test_numbers_fall_into_tenths_of_the_first_sample_and_missing_ones_apart() -> None:
    before = np.append(np.arange(100.0), [np.nan] * 10)
    spread = counts(before, np.array([1.0, 1.0, 99.0, np.nan]), numeric=True)
    assert spread[0].tolist() == [10] * 10 + [10]
    assert spread[1].tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_rare_categories_are_counted_together() -> None:
    before = np.array(["a"] * 60 + ["b"] * 38 + ["c", "d"], dtype=object)
    after = np.array(["a"] * 50 + ["b"] * 46 + ["e", "f", "g", "h"], dtype=object)
    assert counts(before, after, numeric=False).tolist() == [[60, 38, 2], [50, 46, 4]]


def test_a_moved_mean_missing_values_and_another_mix_raise_the_alarm() -> None:
    baseline = dataset(CHANCE.normal(size=300))
    assert alarms(baseline, dataset(CHANCE.normal(size=200))) == set()
    assert alarms(baseline, dataset(CHANCE.normal(size=200) + 1)) == {"x"}
    assert alarms(baseline, dataset(np.where(CHANCE.random(200) < 0.3, np.nan, CHANCE.normal(size=200)))) >= {"x"}
    mixed = dataset(CHANCE.normal(size=200), ["a"] * 100 + ["b"] * 100)
    assert alarms(dataset(CHANCE.normal(size=300), ["a"] * 270 + ["b"] * 30), mixed) == {"y"}
    towns = dataset(list(CHANCE.choice(["Faro", "Porto"], 300)), kind="string")
    assert alarms(towns, dataset(list(CHANCE.choice(["Faro", "Braga"], 200)), kind="string")) >= {"x"}


def test_a_large_index_of_few_rows_and_a_small_one_of_many_are_no_alarm() -> None:
    few = check(Drift(), {"new": dataset(CHANCE.normal(size=25))}, dataset(CHANCE.normal(size=300)))
    assert few[0].size > Drift().psi
    many = check(Drift(), {"new": dataset(CHANCE.normal(size=50_000) + 0.1)}, dataset(CHANCE.normal(size=50_000)))
    assert many[0].chance < 1e-9
    assert not any(one.alarm for one in few + many)


def test_repeated_rows_count_however_many_rows_there_are() -> None:
    assert duplicates(dataset([1.0, 1.0, 2.0, -0.0, 0.0], ["a", "a", "a", "a", "b"])) == pytest.approx(0.2)
    baseline = dataset(CHANCE.normal(size=300))
    assert "duplicates" in alarms(baseline, dataset(np.tile(CHANCE.normal(size=30), 10)))
    assert "duplicates" in alarms(
        baseline, dataset(np.tile(CHANCE.normal(size=400), 10))
    )  # each round longer than what is drawn
    dice = dataset(CHANCE.integers(1, 7, 300).astype(float))
    assert alarms(dice, dataset(CHANCE.integers(1, 7, 3000).astype(float))) == set()


def repeated(share: float, rows: int = 100) -> Dataset:
    """Rows of which this share repeats the first."""
    values = np.arange(float(rows))
    values[: round(share * rows) + 1] = 0.0
    return dataset(values)


@pytest.mark.parametrize(("share", "alarm"), [(0.2, False), (0.3, False), (0.31, True), (1.0 - 1 / 100, True)])
def test_repeated_rows_alarm_above_the_bound_and_not_at_it(share: float, alarm: bool) -> None:
    found = check(Drift(), {"new": repeated(share)}, repeated(0.1))[-1]
    assert (found.what, round(found.size, 9)) == ("duplicates", round(share - 0.1, 9))
    assert found.alarm == alarm


def test_twenty_rows_of_one_alarm_and_twenty_that_repeat_by_luck_do_not() -> None:
    assert "duplicates" in alarms(dataset(CHANCE.normal(size=300)), dataset([1.0] * 20))
    one = check(Drift(duplicates=0), {"new": repeated(0.05, 20)}, dataset(CHANCE.normal(size=20)))[-1]
    assert (one.size > 0, one.alarm) == (True, False)


@pytest.mark.parametrize("kinds", [2, 6, 30, 100])
def test_twenty_rows_of_few_values_raise_no_alarm_that_chance_explains(kinds: int) -> None:
    chance, raised, large = np.random.default_rng(kinds), 0, 0.0
    shares = 1 / np.arange(1, kinds + 1) ** 2  # the last ones are rare
    for kind in ("long", "string", "boolean"):
        for _ in range(300):
            before, after = (chance.choice(kinds, size, p=shares / shares.sum()) for size in (5000, 20))
            before, after = ((each.astype(str) if kind == "string" else each) for each in (before, after))
            pair = dataset(before, kind=kind), dataset(after, kind=kind)
            found = check(Drift(), {"new": pair[1]}, pair[0])
            raised += any(one.alarm for one in found)
            large = max(large, found[0].size)
    print(f"{raised} of 900 windows of {kinds} values raised an alarm, the largest index was {large:.2f}")
    assert raised <= 9


def test_one_missing_number_of_twenty_is_luck_though_hardly_any_was_missing() -> None:
    before = np.append(CHANCE.normal(size=5000), [np.nan])
    assert alarms(dataset(before), dataset(np.append(CHANCE.normal(size=19), [np.nan]))) == set()
    assert "x" in alarms(dataset(before), dataset(np.append(CHANCE.normal(size=10), [np.nan] * 10)))


def test_a_boolean_may_be_missing() -> None:
    before = dataset([0.0, 1.0] * 50 + [np.nan] * 50, kind="boolean")
    assert alarms(before, before) == set()
    assert "x" in alarms(before, dataset([0.0, 1.0] * 50, kind="boolean"))


def test_a_column_that_is_gone_new_or_of_another_type_is_told_and_no_alarm() -> None:
    number, text = dataset(CHANCE.normal(size=50)), dataset(["a"] * 50, kind="string")
    other = Dataset((Feature("z", "long", True),), "y", {"z": number.columns["x"]}, number.labels)
    found = check(Drift(), {"new": other}, number)
    assert (found[0].what, found[0].alarm, found[0].text) == ("schema", False, "schema: x is gone, z is new")
    assert {one.what for one in found[1:]} == {"y", "duplicates"}
    assert check(Drift(), {"new": text}, number)[0].text == "schema: x is text now"
    assert check(Drift(), {"new": number}, text)[0].text == "schema: x is a number now"
    assert "schema" not in {one.what for one in check(Drift(), {"new": number, "recent": number}, number)}


def test_too_few_new_rows_tell_nothing() -> None:
    assert check(Drift(), {"new": dataset([9.0] * 19)}, dataset(CHANCE.normal(size=300))) == []


def test_calibration_error_and_brier_score() -> None:
    truth = np.array(["a"] * 8 + ["b"] * 2 + ["a"] * 5 + ["b"] * 5, dtype=object)
    first = np.array([0.95] * 10 + [0.65] * 10)
    answers = Answers(truth, np.stack([first, 1 - first], axis=1), ("a", "b"))
    bins = reliability(answers)
    assert [(one.rows, round(one.confidence, 2), one.accuracy) for one in bins] == [(10, 0.65, 0.5), (10, 0.95, 0.8)]
    assert calibration_error(bins) == pytest.approx(0.15)
    by_hand = (8 * 2 * 0.05**2 + 2 * 2 * 0.95**2 + 5 * 2 * 0.35**2 + 5 * 2 * 0.65**2) / 20
    assert brier(answers) == pytest.approx(by_hand)
