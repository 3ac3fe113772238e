"""What was found when the champion's predictions were looked at: a tag of its version, which people and programs read.

It decides nothing, so it is not signed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from levada.moment import Moment

WATCH_TAG: Final = "levada.watch"
_Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True)
class Shadowed:
    """What a challenger in shadow said to what the champion was asked."""

    version: str
    rows: _Count
    """Predictions of both that are in the lake."""
    agreement: float
    """Share of them that are the same; of a regression, within 1 %."""
    labelled: _Count = 0
    """Of them, those whose label has come."""
    value: float | None = None
    """The gate's metric of the challenger on the labelled ones; None where it needs more than there is."""
    champion_value: float | None = None
    """The same of the champion."""


@dataclass(frozen=True)
class Watched:
    """One look at a champion."""

    at: Moment
    """RFC 3339, UTC."""
    rows: _Count
    """The newest logged predictions that were looked at."""
    metric: str
    """The gate's."""
    labelled: _Count = 0
    """Of the rows, those whose label has come."""
    value: float | None = None
    """The metric on the labelled rows; None while they are too few, or all one number and the metric is R²."""
    frozen_value: float | None = None
    """The metric on the frozen evaluation set."""
    calibration: float | None = None
    """Expected calibration error on the labelled rows."""
    drift: dict[str, float] = field(default_factory=dict)
    """Field → population stability index against the rows there were when the champion was trained; the label's is of
    what was predicted."""
    bound: float = 0.0
    """The index above which a field raises the alarm, if chance does not explain it."""
    alarms: tuple[str, ...] = ()
    note: str = ""
    """What could not be told, and why."""
    shadow: Shadowed | None = None

    def to_json(self) -> str:
        """One JSON object; :meth:`from_json` reads it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Watched:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: it is no such thing. Nothing of a tag is believed, as any hand may write it.
        """
        return _READER.validate_json(text, strict=True)


_READER: Final = TypeAdapter(Watched)
