"""The decision whether a new model serves, apart from everything it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pandas as pd

from levada.registry.compare import Answers, Bin, calibration_error, chance, exists, lead, metric, reliability

if TYPE_CHECKING:
    from levada.evidence import Outcome
    from levada.pipeline import Gate
    from levada.registry.checks import Check
    from levada.registry.dataset import Dataset

SLICE_ROWS: Final = 5
"""A value of a slice with fewer frozen rows is shown, not judged."""


@dataclass(frozen=True)
class Champion:
    """The model that serves, as far as it can be compared."""

    version: str
    frozen: Answers | None = None
    """Its answers on the frozen set; None if it cannot be asked."""
    recent: Answers | None = None
    """Its answers on the recent rows that the challenger was not trained on; None if they are too few."""
    incomparable: str = ""
    """Why it cannot be asked."""


@dataclass(frozen=True)
class Case:
    """What the gate looks at."""

    rows: Dataset
    """The frozen evaluation set, n rows."""
    frozen: Answers
    """The challenger's answers on it."""
    champion: Champion | None = None
    recent: Answers | None = None
    """The challenger's answers on the recent rows that it was not trained on."""
    checks: list[Check] = field(default_factory=list)
    """New data against what the champion was trained on."""


@dataclass(frozen=True)
class Slice:
    """The rows of the frozen set with one value of a field."""

    field: str
    value: str
    rows: int
    metric: float | None
    """None where it does not exist, as R² where the truth is one value."""
    floor: float
    judged: bool
    """False where the rows are too few or the metric does not exist; it holds then."""
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, why, and the numbers behind it."""

    outcome: Outcome
    reasons: list[str]
    value: float
    """The challenger's metric on the frozen set."""
    champion_value: float | None = None
    lead: float | None = None
    chance: float | None = None
    """p-value of the lead."""
    recent_value: float | None = None
    champion_recent_value: float | None = None
    calibration: float | None = None
    slices: list[Slice] = field(default_factory=list)
    bins: list[Bin] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    """What is suspicious about the data."""


def judge(gate: Gate, case: Case, *, approved: bool = False, earlier: str = "") -> Verdict:
    """Judge a challenger.

    In this order: a model that is not good enough for any use is refused. Suspicious data, a frozen set that is too
    small and a champion that cannot be compared are for a person to decide, never for the numbers: whoever can choose
    the data can choose the numbers. Then the challenger must lead on the frozen set, by more than the margin and more
    than chance explains, and must not be worse on recent rows.

    Args:
        gate: what the pipeline declares.
        case: the evidence.
        approved: whether a person has decided that this model shall serve; it must still be good enough.
        earlier: what tells of a champion that nobody can prove; without one in the case, that is for a person too.
    """
    value = metric(gate.metric, case.frozen)
    slices = _slices(gate, case)
    bins = [] if gate.regression else reliability(case.frozen)
    numbers = _Numbers(gate, case, value)
    verdict = {
        "value": value,
        "champion_value": numbers.champion_value,
        "lead": numbers.lead,
        "chance": numbers.chance,
        "recent_value": numbers.recent_value,
        "champion_recent_value": numbers.champion_recent_value,
        "calibration": calibration_error(bins) if bins else None,
        "slices": slices,
        "bins": bins,
        "alarms": [one.text for one in case.checks if one.alarm],
    }
    unfit = _unfit(gate, value, bins, slices)
    outcome, reasons = _decide(gate, case, numbers, unfit, approved=approved, earlier=earlier)
    return Verdict(outcome=outcome, reasons=reasons, **verdict)  # type: ignore[arg-type]


class _Numbers:
    """Both models side by side."""

    def __init__(self, gate: Gate, case: Case, value: float) -> None:
        self.champion_value = self.lead = self.chance = None
        self.recent_value = self.champion_recent_value = None
        self.worse_recently = False
        self.value = value
        champion = case.champion
        if champion is None or champion.frozen is None:
            return
        self.champion_value = metric(gate.metric, champion.frozen)
        self.lead = lead(gate, value, self.champion_value)
        self.chance = chance(gate, case.frozen, champion.frozen)
        if case.recent is not None and champion.recent is not None and exists(gate.metric, case.recent):
            self.recent_value = metric(gate.metric, case.recent)
            self.champion_recent_value = metric(gate.metric, champion.recent)
            behind = lead(gate, self.champion_recent_value, self.recent_value)
            self.worse_recently = (
                behind > gate.margin and chance(gate, champion.recent, case.recent) < gate.significance
            )


def _unfit(gate: Gate, value: float, bins: list[Bin], slices: list[Slice]) -> list[str]:
    """Why a model is not good enough for any use."""
    found = []
    if not _reaches(gate, value, gate.worst):
        side = "below" if gate.higher_is_better else "above"
        found.append(f"{gate.metric} {value:.4f} is {side} the floor {gate.worst:g}")
    found += [
        f"{gate.metric} {one.metric:.4f} where {one.field} is {one.value} misses its floor {one.floor:g}"
        for one in slices
        if not one.holds
    ]
    if bins and (error := calibration_error(bins)) > gate.calibration:
        found.append(f"expected calibration error {error:.3f} is above {gate.calibration:g}")
    return found


def _decide(
    gate: Gate, case: Case, numbers: _Numbers, unfit: list[str], *, approved: bool, earlier: str
) -> tuple[Outcome, list[str]]:
    if unfit:
        return "refused", unfit
    floor = f"{gate.metric} {numbers.value:.4f} reaches the floor {gate.worst:g}"
    champion = case.champion
    if champion is None:
        if not earlier:
            return "promoted", [f"{floor}; first champion"]
        doubt = f"no champion is proven, but there was one: {earlier}"
        return "promoted" if approved else "needs approval", [doubt, floor]
    doubts = [f"alarm: {one.text}" for one in case.checks if one.alarm]
    doubts += [
        f"the frozen evaluation set has no {name}, which model.gate.slices names: approve, so that rows with it become "
        "the set, or take the slice out"
        for name in gate.slices
        if name != case.rows.label and name not in case.rows.columns
    ]
    if numbers.lead is None or numbers.chance is None:
        doubts.append(f"champion {champion.version} cannot be compared: {champion.incomparable}")
        stand = floor
    else:
        stand = (
            f"{gate.metric} {numbers.value:.4f} leads champion {champion.version} by {numbers.lead:.4f} "
            f"(p {numbers.chance:.2g}), asked are more than {gate.margin:g} and p below {gate.significance:g}"
        )
        leads = numbers.lead > gate.margin and numbers.chance < gate.significance
        if not doubts and not leads and not (numbers.lead > gate.margin and len(case.rows) < gate.least_rows):
            return "kept", [stand]
        if not doubts and numbers.worse_recently:
            return "kept", [
                stand,
                f"worse on recent rows: {numbers.recent_value:.4f}, champion {numbers.champion_recent_value:.4f}",
            ]
        if len(case.rows) < gate.least_rows:
            doubts.append(f"the frozen evaluation set has {len(case.rows)} rows, leastRows asks for {gate.least_rows}")
    if doubts and not approved:
        return "needs approval", [*doubts, stand]
    return "promoted", [*doubts, stand]


def _reaches(gate: Gate, value: float, floor: float) -> bool:
    return value >= floor if gate.higher_is_better else value <= floor


def _slices(gate: Gate, case: Case) -> list[Slice]:
    found = []
    for name, floor in gate.slices.items():
        if name != case.rows.label and name not in case.rows.columns:
            continue
        values = pd.Series(case.rows.labels if name == case.rows.label else case.rows.columns[name])
        # Rows without a number are a slice too, as those without a text are.
        for each in sorted(values.unique().tolist(), key=str):
            here = (values.isna() if pd.isna(each) else values == each).to_numpy()
            answers = case.frozen.take(here)
            value = metric(gate.metric, answers) if exists(gate.metric, answers) else None
            judged = value is not None and len(answers) >= SLICE_ROWS
            holds = value is None or not judged or _reaches(gate, value, floor)
            shown = "missing" if pd.isna(each) else str(each)
            found.append(Slice(name, shown, len(answers), value, floor, judged, holds))
    return found
