"""From the bytes of one event to the message that Kafka gets: checked, sealed, screened, with its envelope."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from levada.event import SCHEMA_VERSION, Checker, EventError, Violation, parse
from levada.http.problem import Problem
from levada.ingest.producer import Headers
from levada.ingest.screen import Screens, Suspicion
from levada.ingest.seal import BusyError, Sealer
from levada.pipeline import Pipeline, PipelineError, seconds


@dataclass(slots=True)
class Event:
    """A checked event on its way."""

    raw: bytes
    record: dict[str, Any]
    """As checked: one value a declared field."""
    moment: datetime
    """When it happened."""
    parsed: dict[str, Any] | None
    """As sent, with digests once it is sealed; None where nothing is sensitive."""


class Envelope(NamedTuple):
    """A message as Kafka gets it."""

    topic: str
    value: bytes
    key: str
    headers: Headers
    review: bool


class Declared:
    """A pipeline as the collector uses it.

    Raises:
        PipelineError: it has sensitive fields, and there is nothing to seal them with.
    """

    def __init__(self, pipeline: Pipeline, sealer: Sealer | None) -> None:
        if pipeline.sensitive and sealer is None:
            raise PipelineError(
                f"pipeline {pipeline.name}: {', '.join(sorted(pipeline.sensitive))}: a sensitive field needs the "
                "pepper: mount a Secret with it and name its file in LEVADA_COLLECTOR__PEPPER_FILE"
            )
        self.pipeline = pipeline
        self.seals = bool(pipeline.sensitive)
        """Whether :meth:`seal` is to be called for an event before :meth:`envelope`."""
        self.costly = any(field.sensitive == "argon2id" for field in pipeline.fields.values())
        """Whether sealing takes long, by intent."""
        self._sealer = sealer
        self._checker = Checker(pipeline)
        self._late = timedelta(seconds=seconds(pipeline.lake.late_horizon))
        self._ahead = timedelta(seconds=seconds(pipeline.lake.max_ahead))
        self._screens = Screens(pipeline) if pipeline.screen else None
        self._fixed = [("pipeline", pipeline.name), ("schema", SCHEMA_VERSION)]

    def check(self, raw: bytes) -> Event:
        """The event in ``raw``.

        Raises:
            Problem: 400, it is no JSON object; 422, it breaks the declaration.
        """
        try:
            parsed = parse(raw)
            record = self._checker.check(parsed)
            moment = self._moment(record)
        except EventError as error:
            status, detail = (400, "the body is not JSON") if error.kind == "json" else (422, "the event is refused")
            raise Problem(status, detail, errors=error.violations) from None
        return Event(raw, record, moment, parsed if self.seals else None)

    def _moment(self, record: dict[str, Any]) -> datetime:
        now, name = datetime.now(UTC), self.pipeline.event_time
        if name is None:
            return now
        moment: datetime = record[name]
        lake = self.pipeline.lake
        if now - moment > self._late:
            message = f"lies further back than lake.lateHorizon, {lake.late_horizon}"
            raise EventError("schema", (Violation(name, "lateHorizon", message),))
        if moment - now > self._ahead:
            message = f"lies further in the future than lake.maxAhead, {lake.max_ahead}"
            raise EventError("schema", (Violation(name, "maxAhead", message),))
        return moment

    async def seal(self, event: Event) -> None:
        """Put digests in place of the event's sensitive values.

        Raises:
            Problem: 429, too many are being made.
        """
        assert self._sealer is not None and event.parsed is not None  # noqa: S101, PT018
        try:
            event.parsed = await self._sealer.seal(self.pipeline, event.parsed)
        except BusyError as busy:
            raise Problem(429, "too many events with sensitive fields at once", retry_after=busy.retry_after) from None

    def envelope(self, event: Event, event_id: str) -> Envelope:
        """The message for an event that was checked, and sealed if it has to be."""
        pipeline, key = self.pipeline, event_id
        if pipeline.key is not None:
            held = event.record if pipeline.key not in pipeline.sensitive else event.parsed or {}
            key = _text(held[pipeline.key])
        moment = orjson.dumps(event.moment)[1:-1]  # as isoformat, at a third of the cost
        headers: Headers = [("event-id", event_id), ("event-time", moment), *self._fixed]
        suspicion = None if self._screens is None else self._screens.judge(event.record)
        if suspicion is not None:
            headers += _why(suspicion)
        topic = pipeline.topic_name if suspicion is None else pipeline.review_topic
        value = event.raw if event.parsed is None else orjson.dumps(event.parsed)
        return Envelope(topic, value, key, headers, suspicion is not None)


def _why(suspicion: Suspicion) -> list[tuple[str, str]]:
    return [
        ("screen", ",".join(suspicion.screens)),
        ("reason", "; ".join(suspicion.reasons)),
        ("decided-at", datetime.now(UTC).isoformat()),
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime) else str(value)
