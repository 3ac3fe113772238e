"""Checking one event against the declaration of its pipeline.

The collector checks before it produces and the sink checks again what it reads, by the same code. What is told
about a refused event never holds a value of it: a message may end in a log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from levada.pipeline import Pipeline

if TYPE_CHECKING:
    from levada.rules import Rule

SCHEMA_VERSION: Final = "1"
"""Version of the envelope: JSON value, headers ``event-id``, ``event-time``, ``pipeline``, ``schema``."""
MAX_EVENT_ID: Final = 64
"""Longest event id, in characters."""

_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Violation:
    """One reason why an event is refused."""

    field: str
    rule: str
    """What was broken: ``type``, ``oneOf``, ``required``, ``unknown``, ``json``, or the text of the field's rule."""
    message: str


class EventError(ValueError):
    """An event that is refused.

    Attributes:
        kind: ``json`` when the bytes are no JSON object, ``schema`` when the object breaks the declaration.
        violations: every reason found, at least one.
    """

    def __init__(self, kind: Literal["json", "schema"], violations: tuple[Violation, ...]) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.message}" for violation in violations))
        self.kind = kind
        self.violations = violations


class _WrongType(Exception):
    pass


def _string(value: Any) -> str:
    if type(value) is not str:
        raise _WrongType
    return value


def _long(value: Any) -> int:
    if type(value) is not int or value not in _INT64:
        raise _WrongType
    return value


def _double(value: Any) -> float:
    if type(value) not in (int, float):
        raise _WrongType
    try:
        number = float(value)
    except OverflowError as error:
        raise _WrongType from error
    if not math.isfinite(number):
        raise _WrongType
    return number


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _WrongType
    return value


def timestamp(value: Any) -> datetime:
    """The instant an RFC 3339 text with a zone names, in UTC; raises ValueError otherwise."""
    if type(value) is not str or len(value) < 20:
        raise ValueError("not an RFC 3339 timestamp with a zone")
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("not an RFC 3339 timestamp with a zone")
    return moment.astimezone(UTC)


def _timestamp(value: Any) -> datetime:
    try:
        return timestamp(value)
    except (ValueError, OverflowError) as error:
        raise _WrongType from error


_CONVERT: Final[dict[str, Callable[[Any], Any]]] = {
    "string": _string,
    "long": _long,
    "double": _double,
    "boolean": _boolean,
    "timestamp": _timestamp,
}
_EXPECTED: Final = {
    "string": "a string",
    "long": "an integer of 64 bits",
    "double": "a finite number",
    "boolean": "true or false",
    "timestamp": "an RFC 3339 timestamp with a zone, such as 2026-01-31T12:00:00Z",
}


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in ``raw``, unchecked.

    Raises:
        EventError: it holds none.
    """
    try:
        event = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        message = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise EventError("json", (Violation("", "json", message),)) from None
    if not isinstance(event, dict):
        raise EventError("json", (Violation("", "json", "an event must be one JSON object"),))
    return event


def _rule(text: str, types: Mapping[str, str]) -> Rule:
    from levada import rules  # only where one is declared: its parser is large

    return rules.parse(text, types)


class Checker:
    """Decodes and checks the events of one pipeline.

    Args:
        pipeline: the declaration.
        sealed: whether sensitive values were replaced by digests already: what is declared of the clear value cannot
            be checked any more.
    """

    def __init__(self, pipeline: Pipeline, *, sealed: bool = False) -> None:
        hidden = pipeline.sensitive if sealed else frozenset()
        self._fields = [
            (name, field, _CONVERT[field.type], None if name in hidden else field.one_of)
            for name, field in pipeline.fields.items()
        ]
        self._names = frozenset(pipeline.fields)
        self._rules = [
            (name, rule)
            for name, field in pipeline.fields.items()
            if field.rule is not None and not (rule := _rule(field.rule, pipeline.types)).columns & hidden
        ]

    def decode(self, raw: bytes) -> dict[str, Any]:
        """The event as one value a declared field: str, int, float, bool, datetime (UTC) or None.

        Raises:
            EventError: with every violation found.
        """
        return self.check(parse(raw))

    def check(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """As :meth:`decode`, for an object that is parsed already."""
        record: dict[str, Any] = {}
        violations = [
            Violation(name, "unknown", "is not declared for this pipeline; take it out")
            for name in event
            if name not in self._names
        ]
        for name, field, convert, one_of in self._fields:
            value = event.get(name)
            if value is None:
                record[name] = None
                if field.required:
                    violations.append(Violation(name, "required", "is missing or null"))
                continue
            try:
                record[name] = value = convert(value)
            except _WrongType:
                violations.append(Violation(name, "type", f"must be {_EXPECTED[field.type]}"))
                continue
            if one_of is not None and value not in one_of:
                violations.append(Violation(name, "oneOf", f"must be one of {', '.join(one_of)}"))
        if violations:
            # Rules may look at several fields; they mean something only on an event of the right types.
            raise EventError("schema", tuple(violations))
        broken = tuple(
            Violation(name, rule.text, f"breaks the rule {rule.text}")
            for name, rule in self._rules
            if not rule.passes(record)
        )
        if broken:
            raise EventError("schema", broken)
        return record
