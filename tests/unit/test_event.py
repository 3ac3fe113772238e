"""Checking events: types, bounds, unknown and missing fields."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levada.event import Checker, EventError
from levada.pipeline import parse_pipeline

CHECKER = Checker(
    parse_pipeline(
        {
            "fields": {
                "d": {"type": "double", "rule": "d BETWEEN 0.5 AND 30"},
                "k": {"type": "long", "required": False},
                "s": {"type": "string", "oneOf": ["a", "b"]},
                "b": {"type": "boolean", "required": False},
                "t": {"type": "timestamp", "required": False},
            }
        },
        "p",
    )
)
GOOD: dict[str, Any] = {"d": 1, "k": 2, "s": "a", "b": True, "t": "2026-01-31T13:00:00+01:00"}


def refused(raw: bytes) -> EventError:
    with pytest.raises(EventError) as caught:
        CHECKER.decode(raw)
    return caught.value


def test_good_event_is_normalised() -> None:
    record = CHECKER.decode(orjson.dumps(GOOD))
    assert record == {"d": 1.0, "k": 2, "s": "a", "b": True, "t": datetime(2026, 1, 31, 12, tzinfo=UTC)}
    assert type(record["d"]) is float
    assert CHECKER.decode(b'{"d":1,"s":"b"}') == {"d": 1.0, "k": None, "s": "b", "b": None, "t": None}


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        ({"d": "1"}, "d", "type"),
        ({"d": True}, "d", "type"),
        ({"d": 10**400}, "d", "type"),
        ({"d": None}, "d", "required"),
        ({"d": 30.1}, "d", "d BETWEEN 0.5 AND 30"),
        ({"k": 1.0}, "k", "type"),
        ({"k": 2**63}, "k", "type"),
        ({"s": "c"}, "s", "oneOf"),
        ({"s": 1}, "s", "type"),
        ({"b": 1}, "b", "type"),
        ({"t": "2026-01-31T13:00:00"}, "t", "type"),
        ({"t": "2026-01-31"}, "t", "type"),
        ({"t": 1}, "t", "type"),
        ({"x": 1}, "x", "unknown"),
    ],
)
def test_violations_name_field_and_rule(change: dict[str, Any], field: str, rule: str) -> None:
    with pytest.raises(EventError) as caught:
        CHECKER.check({**GOOD, **change})
    assert caught.value.kind == "schema"
    assert [(violation.field, violation.rule) for violation in caught.value.violations] == [(field, rule)]


def test_a_sealed_value_is_checked_for_its_type_alone() -> None:
    declared = parse_pipeline(
        {
            "fields": {
                "user": {"type": "string", "rule": "user <> pin"},
                "pin": {"type": "string", "rule": "REGEXP(pin, '^[0-9]{4}$')", "sensitive": "argon2id"},
                "kind": {"type": "string", "oneOf": ["a"], "sensitive": "hmac"},
            }
        },
        "orders",
    )
    event = {"user": "u", "pin": "$argon2id$...", "kind": "0a1b"}
    assert Checker(declared, sealed=True).check(event) == event
    with pytest.raises(EventError) as caught:
        Checker(declared).check(event)
    assert [violation.field for violation in caught.value.violations] == ["kind"]
    with pytest.raises(EventError):
        Checker(declared, sealed=True).check({**event, "pin": 1234})


def test_all_violations_at_once() -> None:
    assert {violation.field for violation in refused(b'{"d":"x","s":"zz","y":1}').violations} == {"d", "s", "y"}


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"[1]", b'"text"', b"\xff", b'{"d":NaN}', b'{"d":1}{"d":2}'])
def test_not_an_object(raw: bytes) -> None:
    assert refused(raw).kind == "json"


@given(
    st.binary(max_size=64)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=4),
        max_leaves=8,
    ).map(lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
)
def test_any_bytes_are_decoded_or_refused(raw: bytes) -> None:
    # Anything but EventError would end the sink; a record has every declared field.
    with contextlib.suppress(EventError):
        assert set(CHECKER.decode(raw)) == {"d", "k", "s", "b", "t"}
