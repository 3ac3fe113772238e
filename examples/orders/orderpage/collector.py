"""Posting one order to the collector, and what its answer means for the user."""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from pathlib import Path

import httpx

log = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """What became of an order."""

    PLACED = "placed"
    """Kafka has it."""
    REFUSED = "refused"
    """It is not a valid order; nothing was kept."""
    UNCERTAIN = "uncertain"
    """It may have been kept: send it again with the same id."""


@dataclass(frozen=True)
class Answer:
    """The collector's answer; status 0 where none came."""

    outcome: Outcome
    status: int


@dataclass(frozen=True)
class Refused(Answer):
    """With the fields and the reasons."""

    errors: tuple[tuple[str, str], ...]


class Collector:
    """The collector of the line."""

    def __init__(self, url: str, api_key_file: Path) -> None:
        self._key_file = api_key_file
        # The collector itself answers within about two seconds, also when Kafka is away.
        self._client = httpx.Client(base_url=url, timeout=httpx.Timeout(10, connect=2))

    def send(self, event: dict[str, str], event_id: str) -> Answer:
        """Post one order; whatever goes wrong is an outcome, not an exception."""
        try:
            key = self._key_file.read_text().strip()
            answer = self._client.post(
                "/v1/orders/events",
                json=event,
                headers={"Authorization": f"Bearer {key}", "Idempotency-Key": event_id},
            )
        except (httpx.HTTPError, OSError) as error:
            log.warning("the collector cannot be asked: %s", type(error).__name__)
            return Answer(Outcome.UNCERTAIN, 0)
        if answer.status_code == httpx.codes.ACCEPTED:
            return Answer(Outcome.PLACED, answer.status_code)
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            errors = tuple((error["field"], error["message"]) for error in answer.json()["errors"])
            return Refused(Outcome.REFUSED, answer.status_code, errors)
        if answer.status_code not in (429, 502, 503, 504):
            # A wrong API key, or no such pipeline: for the operator to mend, and then the same order can be sent.
            log.error("the collector does not take orders: status %d", answer.status_code)
        return Answer(Outcome.UNCERTAIN, answer.status_code)
