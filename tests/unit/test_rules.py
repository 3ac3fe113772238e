"""The rule language: what it accepts, what it refuses, and SQL's three-valued logic."""

from __future__ import annotations

from typing import Any

import pytest

from levada import rules

FIELDS = {"n": "double", "k": "long", "s": "string", "b": "boolean", "t": "timestamp"}


@pytest.mark.parametrize(
    ("text", "record", "value"),
    [
        ("n BETWEEN 0.5 AND 30", {"n": 0.5}, True),
        ("n BETWEEN 0.5 AND 30", {"n": 30.0}, True),
        ("n BETWEEN 0.5 AND 30", {"n": 30.1}, False),
        ("n BETWEEN 0.5 AND 30", {"n": None}, None),
        ("n NOT BETWEEN 1 AND 2", {"n": 3.0}, True),
        ("n > -1 AND k <= 10", {"n": 0.0, "k": 10}, True),
        ("n <> 1 OR b", {"n": 1.0, "b": True}, True),
        ("n = 1 OR b", {"n": None, "b": True}, True),
        ("n = 1 OR b", {"n": None, "b": False}, None),
        ("n = 1 AND b", {"n": None, "b": False}, False),
        ("NOT n = 1", {"n": None}, None),
        ("n IS NULL OR n > 2", {"n": None}, True),
        ("n IS NOT NULL", {"n": None}, False),
        ("s IN ('a', 'it''s')", {"s": "it's"}, True),
        ("s NOT IN ('a')", {"s": "b"}, True),
        ("k IN (1, -2)", {"k": -2}, True),
        ("s LIKE 'a_c%'", {"s": "abcdef"}, True),
        ("s LIKE 'a.c'", {"s": "abc"}, False),
        ("REGEXP(s, '^[0-9]{4}$')", {"s": "1234"}, True),
        ("REGEXP(s, '^[0-9]{4}$')", {"s": "1234\n"}, False),
        ("n + k * 2 - 1 > 5", {"n": 2.0, "k": 3}, True),
        ("b", {"b": None}, None),
        ("NOT (n > 1 AND n < 3)", {"n": 2.0}, False),
        ("t IS NOT NULL", {"t": object()}, True),
    ],
)
def test_value(text: str, record: dict[str, Any], value: bool | None) -> None:
    rule = rules.parse(text, FIELDS)
    assert rule.evaluate(record) is value
    assert rule.passes(record) is (value is True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n / 2 > 1", "is not allowed"),
        ("n % 2 = 1", "is not allowed"),
        ("n != 1", "write <>"),
        ("n == 1", "write ="),
        ('"n" = 1', "unquoted name"),
        ("sepl > 1", "`sepl`, which is not declared"),
        ("nn > 1", "did you mean `n`"),
        ("other.n > 1", "not declared"),
        ("s > 1", "compares a string with a number"),
        ("k IN (1, NULL)", "IN takes number literals"),
        ("k IN (SELECT 1)", "is not allowed"),
        ("n + 1", "must be true or false"),
        ("s AND b", "needs a true or false operand"),
        ("UPPER(s) = 'A'", "is not allowed"),
        ("CAST(s AS INT) = 1", "is not allowed"),
        ("REGEXP(s, '\\d')", "not portable"),
        ("REGEXP(s, '(?=a)')", "not portable"),
        ("REGEXP(s, '[')", "unterminated"),
        ("REGEXP(n, 'a')", "takes a string field"),
        ("n BETWEEN", "is not an expression"),
        ("n > 1; DROP TABLE x", "is not allowed"),
        ("", "is not an expression"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(rules.RuleError, match=message):
        rules.parse(text, FIELDS)


def test_columns_are_named() -> None:
    assert rules.parse("n > 1 OR s = 'n'", FIELDS).columns == {"n", "s"}
