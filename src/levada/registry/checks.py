"""Whether new data looks like what there was when the champion was trained: columns, distributions, repeated rows,
agreement with the champion.

A check raises the alarm when the difference is large *and* more than chance explains. Large alone is not enough: the
population stability index of two small samples of one distribution is far above any usual bound. Nor is certain alone:
among many rows every small difference is certain.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from levada.pipeline import Drift
    from levada.registry.compare import Answers
    from levada.registry.dataset import Dataset

FALSE_ALARMS: Final = 0.005
"""Greatest share of clean windows in which chance alone raises an alarm, all checks of a window together."""
LEAST_ROWS: Final = 20
"""Fewer new rows tell nothing."""
WORSE: Final = 0.1
"""The champion is said to disagree with new labels when it errs on this much more of them than on the frozen rows."""
_LARGEST: Final = 1e6
_PSI_BINS: Final = 10
_RARE: Final = 5.0
"""Categories expected less often than this are counted together, as the chi-squared test needs."""
DUPLICATES: Final = "duplicates"
SCHEMA: Final = "schema"
"""What a check is of that is of no field."""

Window = Literal["new", "recent"]


@dataclass(frozen=True)
class Check:
    """One comparison of a window of new rows with what the champion was trained on."""

    window: Window
    """``new``: all rows since the champion was trained; ``recent``: the newest of them."""
    what: str
    """The field, ``duplicates``, ``champion``, or ``schema``."""
    size: float
    """How large the difference is: a population stability index, a difference of shares, or a number of columns."""
    chance: float
    """How probable so large a difference were by chance, 0 to 1."""
    alarm: bool
    text: str
    """What was found, for a person."""


def check(
    drift: Drift,
    windows: dict[Window, Dataset],
    baseline: Dataset,
    frozen: Answers | None = None,
    answers: dict[Window, Answers] | None = None,
    *,
    regression: bool = False,
) -> list[Check]:
    """Compare windows of new rows with the rows there were when the champion was trained.

    Columns that only one of them has are told and raise no alarm: the declaration was changed, not the data.

    Args:
        drift: the bounds.
        windows: the new rows, one window or more, all with the same columns.
        baseline: the earlier rows.
        frozen: the champion's answers on the frozen evaluation set, if it can be asked.
        answers: its answers on each window.
        regression: whether the label is a number.
    """
    first, new = next(iter(windows.items()))
    names = alike(baseline, new)
    found = _schema(first, baseline, new, names)
    windows = {name: rows for name, rows in windows.items() if len(rows) >= LEAST_ROWS}
    tests = len(windows) * (len(names) + 2)
    level = FALSE_ALARMS / max(tests, 1)  # Bonferroni: all tests together keep the share
    for window, rows in windows.items():
        for name in names:
            kind = next(feature.type for feature in baseline.features if feature.name == name)
            pair = baseline.columns[name], rows.columns[name]
            found.append(_distribution(drift, level, window, name, *pair, numeric=kind in ("double", "long")))
        found.append(_distribution(drift, level, window, rows.label, baseline.labels, rows.labels, numeric=regression))
        found.append(_duplicates(drift, level, window, baseline, names, rows))
        if frozen is not None and answers is not None:
            found.append(_agreement(level, window, frozen, answers[window], regression=regression))
    return found


def alike(before: Dataset, after: Dataset) -> list[str]:
    """The columns that both have, as text or as numbers in both."""
    texts = {feature.name: feature.type == "string" for feature in after.features}
    return [one.name for one in before.features if texts.get(one.name) == (one.type == "string")]


def psi(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Population stability index: the sum over categories of (f - e) ln(f / e), e and f being shares (Siddiqi 2006).

    Half a row is added to every category, since an empty one would make the index infinite.

    Args:
        expected: number of rows in each category, shape (categories,).
        found: the same of the other sample.
    """
    e, f = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (np.asarray(expected), np.asarray(found)))
    return float(np.sum((f - e) * np.log(f / e)))


def duplicates(rows: Dataset, names: Sequence[str] | None = None) -> float:
    """Share of rows, 0 to 1, that repeat an earlier one in the label and these features, all by default."""
    return 1.0 - len(np.unique(rows.digests(names, label=True))) / len(rows)


def counts(before: NDArray[Any], after: NDArray[Any], *, numeric: bool) -> NDArray[np.int64]:
    """How two samples spread over the same categories, shape (2, categories).

    Numbers by the tenths of the first sample, missing ones apart; anything else by its values, those that are rare
    in the first sample together.
    """
    if not numeric:
        both = np.concatenate([before.astype(object), after.astype(object)])
        together, values = pd.factorize(both, use_na_sentinel=False)
        table = np.stack(
            [
                np.bincount(together[: len(before)], minlength=len(values)),
                np.bincount(together[len(before) :], minlength=len(values)),
            ]
        )
        return _merge_rare(table)
    edges = np.unique(np.nanquantile(before, np.linspace(0, 1, _PSI_BINS + 1)[1:-1])) if _any(before) else np.zeros(0)
    size = len(edges) + 1

    def spread(sample: NDArray[Any]) -> NDArray[np.int64]:
        there = sample[~np.isnan(sample)]
        inside = np.bincount(np.searchsorted(edges, there, side="left"), minlength=size)
        return np.append(inside, len(sample) - len(there))

    return np.stack([spread(before), spread(after)])


def _any(sample: NDArray[Any]) -> bool:
    return bool(np.any(~np.isnan(sample)))


def _merge_rare(table: NDArray[np.int64]) -> NDArray[np.int64]:
    rare = _rare(table)
    kept = table[:, ~rare]
    return np.column_stack([kept, table[:, rare].sum(axis=1)]) if rare.any() else kept


def _rare(table: NDArray[np.int64]) -> NDArray[np.bool_]:
    rare: NDArray[np.bool_] = table.sum(axis=0) * (table.sum(axis=1).min() / table.sum()) < _RARE
    return rare


def _distribution(
    drift: Drift, level: float, window: Window, name: str, before: NDArray[Any], after: NDArray[Any], *, numeric: bool
) -> Check:
    if numeric:
        before, after = before.astype(np.float64), after.astype(np.float64)
    table = counts(before, after, numeric=numeric)
    size = psi(table[0], table[1])
    chance = _numeric_chance(before, after) if numeric else _contingency(table)
    test = "Kolmogorov-Smirnov" if numeric else "chi-squared"
    return Check(
        window, name, size, chance, size > drift.psi and chance < level,
        f"{name}: population stability index {size:.2f} (bound {drift.psi:g}), {test} p {chance:.1g}",
    )  # fmt: skip


def _numeric_chance(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Two-sample Kolmogorov-Smirnov test of the numbers that are there, and a chi-squared test of how many are not."""
    missing = np.array([[np.isnan(sample).sum(), (~np.isnan(sample)).sum()] for sample in (before, after)])
    there = [sample[~np.isnan(sample)] for sample in (before, after)]
    chances = []
    if all(len(sample) for sample in there):
        chances.append(float(stats.ks_2samp(*there, method="asymp").pvalue))
    if missing[:, 0].any():
        chances.append(_contingency(missing))
    return min(1.0, len(chances) * min(chances))


def _contingency(table: NDArray[np.int64]) -> float:
    """Chi-squared test of the categories that are frequent enough for it; Fisher's exact test of all others together.

    With few new rows a single one of a rare category would seem impossible to the chi-squared test.
    """
    rare = _rare(table)
    often, chances = table[:, ~rare], []
    if often.shape[1] > 1 and often.sum(axis=1).all():
        chances.append(float(stats.chi2_contingency(often).pvalue))
    if table[:, rare].any():
        seldom = table[:, rare].sum(axis=1)
        chances.append(float(stats.fisher_exact(np.column_stack([seldom, often.sum(axis=1)])).pvalue))
    return min([1.0, *(len(chances) * chance for chance in chances)])


def _schema(window: Window, baseline: Dataset, rows: Dataset, same: Sequence[str]) -> list[Check]:
    texts = [f"{name} is gone" for name in baseline.columns if name not in rows.columns]
    texts += [f"{name} is new" for name in rows.columns if name not in baseline.columns]
    texts += [
        f"{one.name} is {'text' if one.type == 'string' else 'a number'} now"
        for one in rows.features
        if one.name in baseline.columns and one.name not in same
    ]
    return [Check(window, SCHEMA, len(texts), 0.0, False, f"schema: {', '.join(texts)}")] if texts else []


def _duplicates(
    drift: Drift, level: float, window: Window, baseline: Dataset, names: Sequence[str], rows: Dataset
) -> Check:
    """Whether more rows repeat, by Fisher's exact test: the number of repeats varies less than the test supposes."""
    # Among more rows more repeat, so both shares are of equally many, drawn at random: the newest could be one round of
    # rows that come again and again.
    size = min(len(baseline), len(rows))
    drawn = np.random.default_rng(0)
    before, after = (
        duplicates(sample.take(drawn.choice(len(sample), size, replace=False)), names) for sample in (baseline, rows)
    )
    more, repeats = after - before, [round(after * size), round(before * size)]
    table = [[repeats[0], size - repeats[0]], [repeats[1], size - repeats[1]]]
    chance = float(stats.fisher_exact(table, alternative="greater").pvalue)
    return Check(
        window, DUPLICATES, more, chance, round(more, 9) > drift.duplicates and chance < level,
        f"duplicates: {after:.0%} of {size} rows repeat an earlier one, {before:.0%} of those the champion is from, "
        f"p {chance:.1g}",
    )  # fmt: skip


def _agreement(level: float, window: Window, frozen: Answers, answers: Answers, *, regression: bool) -> Check:
    """Whether the champion errs more on new rows than on the frozen ones, which a change of labels alone brings about.

    Classes by Fisher's exact test of right and wrong; numbers by the Mann-Whitney test of the sizes of the errors.
    """
    if regression:
        before, after = np.abs(frozen.errors), np.abs(answers.errors)
        # A champion without any error makes every other one infinitely larger, which no report can hold.
        size = min(float(after.mean()) / max(float(before.mean()), sys.float_info.min) - 1, _LARGEST)
        chance = float(stats.mannwhitneyu(after, before, alternative="greater").pvalue)
        text = f"champion: its mean error on new rows is {after.mean():.3g}, {before.mean():.3g} on the frozen ones"
    else:
        right, right_before = int(answers.right.sum()), int(frozen.right.sum())
        wrong, wrong_before = len(answers) - right, len(frozen) - right_before
        share, share_before = wrong / len(answers), wrong_before / len(frozen)
        size = share - share_before
        table = [[wrong, right], [wrong_before, right_before]]
        chance = float(stats.fisher_exact(table, alternative="greater").pvalue)
        text = f"champion: wrong on {share:.0%} of new rows, on {share_before:.0%} of the frozen ones"
    return Check(window, "champion", size, chance, size > WORSE and chance < level, f"{text}, p {chance:.1g}")
