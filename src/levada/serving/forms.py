"""What a model can be asked: bodies of JSON become rows of exactly its features, or a refusal that names the feature.

A good body is decoded straight into the types of the features. Only one that does not fit is looked at again, to say
all that is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Annotated, Any, Final

import msgspec
import orjson
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple

from levada.event import Checker, EventError, Violation
from levada.http.problem import Problem
from levada.pipeline import Field, Pipeline
from levada.scoring import Feature

MAX_INSTANCES: Final = 10_000
NOT_PLAIN: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What :meth:`Form.plain` raises."""
EXPLAINED_BYTES: Final = 262_144
"""A larger body that does not fit is refused for its first mistake: to look for all takes many times its size."""
_MAX_ERRORS: Final = 20
_MAX_MESSAGE: Final = 200
_PLACE: Final = re.compile(r" - at `\$(?:\.(\w+))?(?:\[(\d+)\])?(?:\.(\w+)|\[(\d+)\])?.*", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_TYPES: Final[dict[str, Any]] = {
    "double": float,
    "long": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "boolean": bool,
    "string": str,
}

Row = tuple[Any, ...]
"""The values of one instance in the order of the model's features, None for one that is missing."""


@dataclass(frozen=True)
class RowViolation(Violation):
    """What is wrong with one row."""

    instance: int
    """Its place in the request, from 0."""


class BadRows(Problem):
    """422: rows that are not of the model's features."""

    def __init__(
        self, errors: Sequence[RowViolation], detail: str = "instances do not fit the model's features"
    ) -> None:
        super().__init__(422, detail, errors=errors[:_MAX_ERRORS])
        self._instances = [error.instance for error in errors]

    def errors_json(self) -> list[dict[str, Any]]:
        """As of every problem, with the row of each."""
        found = super().errors_json()
        return [{"instance": number, **error} for number, error in zip(self._instances, found, strict=False)]


class Form:
    """The bodies ``{"instances": [{feature: value}]}`` and ``{"inputs": [[value]]}`` for one list of features."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = features
        self._names = [feature.name for feature in features]
        types = [_TYPES[f.type] if f.required else _TYPES[f.type] | None for f in features]
        row = msgspec.defstruct(
            "Row",
            # A feature may have a name that is a word of Python.
            [
                (f"f{n}", kind) if feature.required else (f"f{n}", kind, None)
                for n, (feature, kind) in enumerate(zip(features, types, strict=True))
            ],
            rename={f"f{n}": name for n, name in enumerate(self._names)},
            forbid_unknown_fields=True, kw_only=True, gc=False,
        )  # fmt: skip
        self.row_type: Any = GenericAlias(tuple, tuple(types))
        body = msgspec.defstruct(
            "Body",
            [("instances", _some(row), UNSET), ("inputs", _some(self.row_type), UNSET)],
            forbid_unknown_fields=True,
        )
        self._body: msgspec.json.Decoder[Any] = msgspec.json.Decoder(body)
        fields = {feature.name: Field(type=feature.type, required=feature.required) for feature in features}
        self._checker = Checker(Pipeline(name="model", fields=fields))

    def plain(self, body: bytes) -> list[Row]:
        """The rows of a body that is right.

        Raises:
            NOT_PLAIN: it is not; the message is not for clients.
        """
        asked = self._body.decode(body)
        if asked.inputs is UNSET and asked.instances is not UNSET:
            return [astuple(row) for row in asked.instances]
        if asked.inputs is UNSET or asked.instances is not UNSET:
            raise ValueError("one of instances and inputs")
        rows: list[Row] = asked.inputs
        return rows

    def rows(self, body: bytes) -> list[Row]:
        """The rows of any body.

        Raises:
            Problem: 400 for what is no JSON, 422 with the row and the feature for what does not fit.
        """
        try:
            return self.plain(body)
        except NOT_PLAIN as error:
            if len(body) > EXPLAINED_BYTES:
                raise self._first(error) from None
        request, broken = parse(body)
        if not isinstance(request, dict) or request.keys() not in ({"instances"}, {"inputs"}):
            raise broken or wrong("", "type", 'the body must be one object {"instances": [...]} or {"inputs": [...]}')
        ((name, given),) = request.items()
        kind, what = (dict, "objects") if name == "instances" else (list, "arrays")
        if not isinstance(given, list) or not all(isinstance(each, kind) for each in given):
            raise broken or wrong(name, "type", f"must be an array of {what}, one a row")
        if not 0 < len(given) <= MAX_INSTANCES:
            raise broken or wrong(name, "size", f"must hold between 1 and {MAX_INSTANCES} rows")
        rows = self.checked(given if name == "instances" else list(self._named(given)))
        if broken is not None:
            raise broken
        return rows

    def checked(self, instances: Sequence[dict[str, Any]]) -> list[Row]:
        """Rows from objects that were parsed already.

        Raises:
            BadRows: with the first violations.
        """
        rows: list[Row] = []
        errors: list[RowViolation] = []
        for number, instance in enumerate(instances):
            try:
                rows.append(tuple(self._checker.check(instance).values()))
            except EventError as error:
                errors += [RowViolation(v.field, v.rule, v.message, number) for v in error.violations]
                if len(errors) >= _MAX_ERRORS:
                    break
        if errors:
            raise BadRows(errors)
        return rows

    def _named(self, rows: Sequence[list[Any]]) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows):
            if len(row) != len(self._names):
                missing = self._names[len(row)] if len(row) < len(self._names) else ""
                message = f"the row has {len(row)} values, the model takes {', '.join(self._names)} in this order"
                raise BadRows([RowViolation(missing, "size", message[:_MAX_MESSAGE], number)])
            yield dict(zip(self._names, row, strict=True))

    def _first(self, error: Exception) -> Problem:
        """What msgspec says, in the words of the other refusals; it never tells a value."""
        text = str(error)
        if not isinstance(error, msgspec.ValidationError):
            return Problem(400, f"the body is not JSON: {text[:_MAX_MESSAGE]}")
        place = _PLACE.search(text)
        message = _PLACE.sub("", text)[:_MAX_MESSAGE]
        if place is None or place[2] is None:
            return wrong(place[1] or "" if place else "", "type", message)
        missing = _MISSING.match(message)
        field = self._names[int(place[4])] if place[4] else place[3] or (missing[1] if missing else "")
        return BadRows([RowViolation(field, "type", message, int(place[2]))])


def _some(row: Any) -> Any:
    size = msgspec.Meta(min_length=1, max_length=MAX_INSTANCES)
    return Annotated[GenericAlias(list, row), size] | UnsetType


def parse(body: bytes) -> tuple[Any, Problem | None]:
    """What a body holds that was refused already, and what to answer in case that shows nothing wrong.

    Raises:
        Problem: 400, it is nothing like JSON.
    """
    try:
        return orjson.loads(body), None
    except orjson.JSONDecodeError as error:
        broken = Problem(400, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    try:
        # Clients write NaN, Infinity and 1e999, which are no JSON numbers; their answer shall name the field.
        return json.loads(body), broken
    except (ValueError, RecursionError):
        raise broken from None


def wrong(field: str, rule: str, message: str) -> Problem:
    """422 with one reason that belongs to no row."""
    return Problem(422, message, errors=[Violation(field, rule, message)])
