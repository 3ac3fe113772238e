"""The rule language: boolean expressions in a small portable SQL subset.

A rule is text such as ``sepal_length BETWEEN 0.5 AND 30``. It is parsed with sqlglot, held against an
allow-list, type-checked against the declared fields and compiled to Python closures. Only what Python, DuckDB,
Spark and Flink evaluate alike is allowed, so one text means one thing wherever it runs. SQL's three-valued logic
holds inside a rule; a rule whose result is NULL fails.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlglot
from sqlglot import exp

Value = Any
Evaluate = Callable[[Mapping[str, Value]], Value]

ALLOWED: Final = (
    "comparisons (= <> < <= > >=), BETWEEN, IN, IS [NOT] NULL, LIKE, REGEXP(text, pattern), "
    "AND, OR, NOT, and + - * on numbers"
)

_COMPARISONS: Final[dict[type[exp.Expr], Callable[[Any, Any], bool]]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
_ARITHMETIC: Final[dict[type[exp.Expr], Callable[[Any, Any], Any]]] = {
    exp.Add: operator.add,
    exp.Sub: operator.sub,
    exp.Mul: operator.mul,
}
_KINDS: Final = {
    "string": "string",
    "long": "number",
    "double": "number",
    "boolean": "boolean",
    "timestamp": "timestamp",
}
# Regular expression engines disagree on these (RE2 has no lookaround; Spark unescapes backslashes in literals).
_UNPORTABLE_PATTERN: Final = re.compile(r"\\|\(\?")


class RuleError(ValueError):
    """A rule that cannot be used; the message says what to write instead."""


@dataclass(frozen=True)
class Rule:
    """One compiled rule."""

    text: str
    columns: frozenset[str]
    evaluate: Evaluate
    """Value of the expression for one record: True, False or None (SQL NULL)."""

    def passes(self, record: Mapping[str, Value]) -> bool:
        """Whether the record keeps the rule; NULL does not."""
        return self.evaluate(record) is True


@dataclass(frozen=True)
class _Typed:
    kind: str  # string, number, boolean, timestamp
    evaluate: Evaluate


def parse(text: str, fields: Mapping[str, str]) -> Rule:
    """Compile ``text`` for records whose columns and types are ``fields`` (name → declared type).

    Raises:
        RuleError: not parseable, outside the subset, an undeclared column, or operands of different types.
    """
    # sqlglot reads `!=` and `==` as their portable twins; engines do not all accept them.
    for token, instead in (("!=", "<>"), ("==", "="), ('"', "an unquoted name or a 'single-quoted' text")):
        if token in _outside_strings(text):
            raise RuleError(f"`{token}` is not portable, write {instead}")
    try:
        tree = sqlglot.parse_one(text)
    except sqlglot.errors.SqlglotError as error:
        raise RuleError(f"is not an expression: {str(error).splitlines()[0]}") from error
    columns: set[str] = set()
    typed = _compile(tree, fields, columns)
    if typed.kind != "boolean":
        raise RuleError(f"is a {typed.kind}, a rule must be true or false")
    return Rule(text, frozenset(columns), typed.evaluate)


def _outside_strings(text: str) -> str:
    return re.sub(r"'(?:[^']|'')*'", "''", text)


def _compile(node: exp.Expr, fields: Mapping[str, str], columns: set[str]) -> _Typed:
    def sub(child: exp.Expr) -> _Typed:
        return _compile(child, fields, columns)

    match node:
        case exp.Paren():
            return sub(node.this)
        case exp.Column():
            return _column(node, fields, columns)
        case exp.Literal():
            return _literal(node)
        case exp.Neg() if isinstance(node.this, exp.Literal) and not node.this.is_string:
            number = _number(node.this)
            return _Typed("number", lambda _: -number)
        case exp.Boolean():
            truth = bool(node.this)
            return _Typed("boolean", lambda _: truth)
        case exp.And() | exp.Or():
            return _logic(node, sub(node.this), sub(node.expression))
        case exp.Not():
            return _negate(_boolean(sub(node.this), node))
        case exp.Is() if isinstance(node.expression, exp.Null):
            inner = sub(node.this).evaluate
            return _Typed("boolean", lambda record: inner(record) is None)
        case exp.Between():
            value, low, high = sub(node.this), sub(node.args["low"]), sub(node.args["high"])
            return _logic(
                exp.And(), _comparison(node, operator.ge, value, low), _comparison(node, operator.le, value, high)
            )
        case exp.In() if node.expressions:
            return _membership(node, sub)
        case exp.Like():
            return _like(node, sub(node.this))
        case exp.Anonymous() | exp.RegexpLike():
            return _regexp(node, sub)
    if compare := _COMPARISONS.get(type(node)):
        return _comparison(node, compare, sub(node.this), sub(node.expression))
    if compute := _ARITHMETIC.get(type(node)):
        return _arithmetic(node, compute, sub(node.this), sub(node.expression))
    raise RuleError(f"`{node.sql()}` is not allowed; a rule may use {ALLOWED}")


def _column(node: exp.Column, fields: Mapping[str, str], columns: set[str]) -> _Typed:
    name = node.name
    if node.table or name not in fields:
        near = difflib.get_close_matches(node.sql(), fields, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"declared are {', '.join(fields)}"
        raise RuleError(f"names the field `{node.sql()}`, which is not declared: {hint}")
    columns.add(name)
    return _Typed(_KINDS[fields[name]], lambda record: record.get(name))


def _number(node: exp.Literal) -> int | float:
    return int(node.this) if node.is_int else float(node.this)


def _literal(node: exp.Literal) -> _Typed:
    value: str | int | float = str(node.this) if node.is_string else _number(node)
    return _Typed("string" if node.is_string else "number", lambda _: value)


def _boolean(operand: _Typed, node: exp.Expr) -> _Typed:
    if operand.kind != "boolean":
        raise RuleError(f"`{node.sql()}` needs a true or false operand, not a {operand.kind}")
    return operand


def _logic(node: exp.Expr, left: _Typed, right: _Typed) -> _Typed:
    a, b = _boolean(left, node).evaluate, _boolean(right, node).evaluate
    decisive = isinstance(node, exp.Or)  # OR is settled by one True, AND by one False

    def evaluate(record: Mapping[str, Value]) -> Value:
        first = a(record)
        if first is decisive:
            return decisive
        second = b(record)
        if second is decisive:
            return decisive
        return None if first is None or second is None else not decisive

    return _Typed("boolean", evaluate)


def _negate(operand: _Typed) -> _Typed:
    inner = operand.evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        value = inner(record)
        return None if value is None else not value

    return _Typed("boolean", evaluate)


def _strict(kind: str, compute: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> _Typed:
    """NULL in, NULL out."""

    def evaluate(record: Mapping[str, Value]) -> Value:
        a, b = left(record), right(record)
        return None if a is None or b is None else compute(a, b)

    return _Typed(kind, evaluate)


def _comparison(node: exp.Expr, compare: Callable[[Any, Any], bool], left: _Typed, right: _Typed) -> _Typed:
    if left.kind != right.kind:
        raise RuleError(f"`{node.sql()}` compares a {left.kind} with a {right.kind}; both sides must be of one type")
    return _strict("boolean", compare, left.evaluate, right.evaluate)


def _arithmetic(node: exp.Expr, compute: Callable[[Any, Any], Any], left: _Typed, right: _Typed) -> _Typed:
    if {left.kind, right.kind} != {"number"}:
        raise RuleError(f"`{node.sql()}` needs numbers on both sides")
    return _strict("number", compute, left.evaluate, right.evaluate)


def _membership(node: exp.In, sub: Callable[[exp.Expr], _Typed]) -> _Typed:
    value = sub(node.this)
    options = []
    for option in node.expressions:
        typed = sub(option) if isinstance(option, exp.Literal | exp.Neg) else None
        if typed is None or typed.kind != value.kind:
            raise RuleError(f"`{node.sql()}`: IN takes {value.kind} literals only, not `{option.sql()}`")
        options.append(typed.evaluate({}))
    members, inner = frozenset(options), value.evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        item = inner(record)
        return None if item is None else item in members

    return _Typed("boolean", evaluate)


def _pattern(node: exp.Expr, function: str, operand: _Typed, pattern: exp.Expr | None) -> str:
    if operand.kind != "string" or not (isinstance(pattern, exp.Literal) and pattern.is_string):
        raise RuleError(f"`{node.sql()}`: {function} takes a string field and a 'text' pattern")
    return str(pattern.this)


def _matching(expression: re.Pattern[str], inner: Evaluate) -> _Typed:
    def evaluate(record: Mapping[str, Value]) -> Value:
        text = inner(record)
        return None if text is None else expression.search(text) is not None

    return _Typed("boolean", evaluate)


def _like(node: exp.Like, operand: _Typed) -> _Typed:
    pattern = _pattern(node, "LIKE", operand, node.expression)
    if "\\" in pattern:
        raise RuleError(f"`{node.sql()}`: a backslash in a LIKE pattern is not portable")
    wild = {"%": ".*", "_": "."}
    body = "".join(wild.get(character, re.escape(character)) for character in pattern)
    return _matching(re.compile(rf"\A{body}\Z", re.DOTALL), operand.evaluate)


def _regexp(node: exp.Expr, sub: Callable[[exp.Expr], _Typed]) -> _Typed:
    if isinstance(node, exp.Anonymous):
        if node.name.upper() != "REGEXP" or len(node.expressions) != 2:
            raise RuleError(f"`{node.sql()}` is not allowed; a rule may use {ALLOWED}")
        text, pattern_node = node.expressions
    else:
        text, pattern_node = node.this, node.expression
    operand = sub(text)
    pattern = _pattern(node, "REGEXP", operand, pattern_node)
    if _UNPORTABLE_PATTERN.search(pattern):
        raise RuleError(f"`{node.sql()}`: backslashes and (?…) are not portable; write [0-9] instead of \\d")
    try:
        return _matching(
            re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern), operand.evaluate
        )
    except re.error as error:
        raise RuleError(f"`{node.sql()}`: {error}") from error
