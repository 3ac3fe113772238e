"""The decision whether a new model serves, apart from everything it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from levada.pipeline import Gate
    from levada.scoring import Label


@dataclass(frozen=True)
class Outcome:
    """What the gate decided, and why in one sentence."""

    outcome: Literal["promoted", "kept", "refused"]
    """Kept: good enough, but no better than the champion, which stays. Refused: not good enough for any use."""
    reason: str


def accuracy(truth: Sequence[Label], predicted: Sequence[Label]) -> float:
    """Share of rows predicted right, 0 to 1."""
    return sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)


def decide(
    gate: Gate, value: float, champion: str | None, champion_value: float | None, incomparable: str = ""
) -> Outcome:
    """Judge a challenger.

    Args:
        gate: floor and margin of the pipeline.
        value: the challenger's metric on its frozen evaluation set.
        champion: the version that serves now, or None.
        champion_value: the champion's metric on the same set; None if it cannot be scored on it.
        incomparable: why it cannot be scored; the floor alone decides then, for such a champion cannot stay.
    """
    if value < gate.floor:
        return Outcome("refused", f"{gate.metric} {value:.4f} is below the floor {gate.floor:g}")
    if champion is None:
        return Outcome("promoted", f"{gate.metric} {value:.4f} reaches the floor {gate.floor:g}; first champion")
    if champion_value is None:
        return Outcome(
            "promoted",
            f"{gate.metric} {value:.4f} reaches the floor {gate.floor:g}; champion {champion} cannot be compared: "
            f"{incomparable}",
        )
    lead = round(value - champion_value, 9)  # 0.905 - 0.9 is a little more than 0.005 in binary
    if lead > gate.margin:
        return Outcome("promoted", f"{gate.metric} leads champion {champion} by {lead:.4f}, more than {gate.margin:g}")
    return Outcome("kept", f"{gate.metric} leads champion {champion} by {lead:.4f}, not more than {gate.margin:g}")
