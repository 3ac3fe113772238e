"""A moment as the tags of a model version have it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text} is out of the years there are") from error
    return text


Moment = Annotated[str, AfterValidator(_moment)]
"""RFC 3339 text."""
