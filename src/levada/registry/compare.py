"""What the answers of one model, or of two on the same rows, say about it: metrics, significance, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from levada.pipeline import Gate
    from levada.registry.dataset import Dataset
    from levada.scoring import Label, OnnxModel

_BINS: Final = 10
_RESAMPLES: Final = 1999
_LEAST_PROBABILITY: Final = 1e-15
"""What a probability of zero counts as in the log loss, which would be infinite."""


@dataclass(frozen=True)
class Answers:
    """What one model says of n rows, beside the truth."""

    truth: NDArray[Any]
    """Shape (n,)."""
    scores: NDArray[np.float64]
    """Shape (n, labels): probabilities; or (n, 1): the predicted number of a regression."""
    labels: tuple[Label, ...]
    """What the columns of scores stand for; none for a regression."""

    @classmethod
    def of(cls, model: OnnxModel, rows: Dataset) -> Answers:
        """Ask a model for all rows; they may have more columns than it takes."""
        return cls(rows.labels, np.asarray(model.scores(rows.columns), dtype=np.float64), model.meta.labels)

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: NDArray[Any]) -> Answers:
        """The answers for the rows that a mask or an array of positions names."""
        return Answers(self.truth[rows], self.scores[rows], self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the most probable label is the true one, shape (n,)."""
        names = np.array([*self.labels], dtype=object)
        found: NDArray[np.bool_] = names[self.scores.argmax(axis=1)] == self.truth.astype(object)
        return found

    @property
    def of_truth(self) -> NDArray[np.float64]:
        """Probability given to the true label, shape (n,); zero for a label the model does not know."""
        known = self.truth.astype(object)[:, None] == np.array([*self.labels], dtype=object)[None, :]
        result: NDArray[np.float64] = np.where(known, self.scores, 0.0).sum(axis=1)
        return result

    @property
    def errors(self) -> NDArray[np.float64]:
        """Prediction minus truth of a regression, shape (n,)."""
        return self.scores[:, 0] - self.truth.astype(np.float64)


def metric(name: str, answers: Answers) -> float:
    """Accuracy, log loss (mean of -ln p of the true label), root mean squared error, or R²."""
    return float(_metric(name, _terms(name, answers), axis=-1))


def exists(name: str, answers: Answers) -> bool:
    """Whether these answers have the metric: none has one without rows, nor R² one without a spread of the truth."""
    return len(answers) > 0 and (name != "r2" or bool(np.ptp(answers.truth.astype(np.float64)) > 0))


def lead(gate: Gate, challenger: float, champion: float) -> float:
    """By how much the first value is better than the second, in units of the metric; negative if it is worse."""
    difference = challenger - champion if gate.higher_is_better else champion - challenger
    return round(difference, 9)  # 0.905 - 0.9 is a little more than 0.005 in binary


def chance(gate: Gate, challenger: Answers, champion: Answers) -> float:
    """How probable so good a challenger were if it were no better than the champion: a one-sided, paired test.

    Accuracy by McNemar's exact test (McNemar 1947; the binomial of Edwards' exact form): of the rows where one is
    right and the other wrong, how many favour the challenger. Every other metric by the paired bootstrap (Efron and
    Tibshirani 1993, ch. 16): rows are drawn again 1,999 times, both models' answers together.

    Args:
        gate: names the metric.
        challenger: its answers.
        champion: its answers on the same rows.

    Returns:
        The p-value, 0 to 1; 1 when they never differ.
    """
    if gate.metric == "accuracy":
        only_challenger = int(np.sum(challenger.right & ~champion.right))
        only_champion = int(np.sum(champion.right & ~challenger.right))
        if not only_challenger + only_champion:
            return 1.0
        return float(stats.binomtest(only_challenger, only_challenger + only_champion, alternative="greater").pvalue)
    ours, theirs = _terms(gate.metric, challenger), _terms(gate.metric, champion)
    sign = 1.0 if gate.higher_is_better else -1.0
    positions = np.arange(len(challenger))

    def led(chosen: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        better, worse = (_metric(gate.metric, terms[:, chosen], axis) for terms in (ours, theirs))
        found: NDArray[np.float64] = sign * (better - worse)
        return found

    drawn = stats.bootstrap(
        (positions,), led, vectorized=True, n_resamples=_RESAMPLES, batch=50, method="percentile",
        rng=np.random.default_rng(0),  # the same evidence gives the same verdict
    ).bootstrap_distribution  # fmt: skip
    return float((1 + np.sum(drawn <= 0)) / (1 + len(drawn)))


def _terms(name: str, answers: Answers) -> NDArray[np.float64]:
    """What a metric is made of, shape (2, n): a value a row, and the truth where the metric needs that too."""
    if name == "accuracy":
        each = answers.right.astype(np.float64)
    elif name == "log_loss":
        each = -np.log(np.maximum(answers.of_truth, _LEAST_PROBABILITY))
    else:
        each = answers.errors**2
    truth = answers.truth.astype(np.float64) if name in ("rmse", "r2") else each
    return np.stack([each, truth])


def _metric(name: str, terms: NDArray[np.float64], axis: int) -> Any:
    each, truth = terms
    if name == "rmse":
        return np.sqrt(each.mean(axis=axis))
    if name == "r2":
        return 1.0 - each.mean(axis=axis) / np.maximum(truth.var(axis=axis), np.finfo(np.float64).tiny)
    return each.mean(axis=axis)


@dataclass(frozen=True)
class Bin:
    """Rows whose greatest probability lies in one tenth of 0 to 1."""

    rows: int
    confidence: float
    """Mean of their greatest probability."""
    accuracy: float
    """Share of them that are right."""


def reliability(answers: Answers) -> list[Bin]:
    """The bins that hold rows, from the least to the most confident."""
    confidence, right = answers.scores.max(axis=1), answers.right
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    found = []
    for number in range(_BINS):
        here = place == number
        if here.any():
            found.append(Bin(int(here.sum()), float(confidence[here].mean()), float(right[here].mean())))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error, 0 to 1: mean gap of confidence and accuracy over bins (Guo et al. 2017, eq. 3)."""
    rows = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.accuracy - one.confidence) for one in bins) / rows


def brier(answers: Answers) -> float:
    """Mean squared distance of the probabilities from the truth, 0 to 2 (Brier 1950, over all classes)."""
    known = answers.truth.astype(object)[:, None] == np.array([*answers.labels], dtype=object)[None, :]
    return float(((answers.scores - known) ** 2).sum(axis=1).mean())
