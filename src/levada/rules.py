"""The rule language: boolean expressions in a small portable SQL subset.

A rule is text such as ``sepal_length BETWEEN 0.5 AND 30``. It is parsed with sqlglot, held against an
allow-list, type-checked against the declared fields and compiled to Python closures and to SQL. Only what Python,
DuckDB, Spark and Flink evaluate alike is allowed, so one text means one thing wherever it runs. SQL's three-valued
logic holds inside a rule; a rule whose result is NULL fails.

Numbers: longs are compared with longs and whole literals exactly; everything else, and all arithmetic, is done in
binary64, because engines differ in what a long that overflows becomes. Arithmetic that leaves the finite numbers is
NULL, because engines differ in how NaN compares.
"""

from __future__ import annotations

import difflib
import math
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
    "comparisons (= <> < <= > >=), BETWEEN, IN, IS [NOT] NULL, LIKE [ESCAPE], REGEXP(text, pattern), "
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
_SIGNS: Final[dict[type[exp.Expr], str]] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.Add: "+",
    exp.Sub: "-",
    exp.Mul: "*",
}
_LOWEST, _HIGHEST = (f"CAST('{sign}1.7976931348623157e308' AS DOUBLE)" for sign in ("-", ""))
_KINDS: Final = {
    "string": "string",
    "long": "number",
    "double": "number",
    "boolean": "boolean",
    "timestamp": "timestamp",
}
_INT64: Final = range(-(2**63), 2**63)
# Regular expression engines disagree on these: RE2 has no lookaround and no possessive quantifiers, repeats at most
# 1000 times and takes [:alpha:] for a class; Spark unescapes backslashes in literals.
_UNPORTABLE_PATTERN: Final = re.compile(r"\\|\(\?|\[\[|\[:|[*+?}]\+|\{,|\{[0-9]{4}|,[0-9]{4}")


class RuleError(ValueError):
    """A rule that cannot be used; the message says what to write instead."""


@dataclass(frozen=True)
class Rule:
    """One compiled rule."""

    text: str
    columns: frozenset[str]
    evaluate: Evaluate
    """Value of the expression for one record: True, False or None (SQL NULL)."""
    sql: str
    """The expression with every conversion written out, for engines that have ``REGEXP(text, pattern)``."""
    tree: exp.Expr
    """The expression as parsed and checked."""

    def passes(self, record: Mapping[str, Value]) -> bool:
        """Whether the record keeps the rule; NULL does not."""
        return self.evaluate(record) is True


@dataclass(frozen=True)
class _Typed:
    kind: str  # string, number, boolean, timestamp
    evaluate: Evaluate
    sql: str
    exact: bool = False  # a number that is a 64-bit integer
    raw: str = ""  # of arithmetic: the SQL before it is asked whether it is finite


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
    return Rule(text, frozenset(columns), typed.evaluate, typed.sql, tree)


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
        case exp.Literal() | exp.Neg() if (constant := literal(node)) is not None:
            return _literal(constant)
        case exp.Boolean():
            truth = bool(node.this)
            return _Typed("boolean", lambda _: truth, str(truth).upper())
        case exp.And() | exp.Or():
            return _logic(isinstance(node, exp.Or), node, sub(node.this), sub(node.expression))
        case exp.Not():
            return _negate(_boolean(sub(node.this), node))
        case exp.Is() if isinstance(node.expression, exp.Null):
            operand = sub(node.this)
            inner = operand.evaluate
            return _Typed("boolean", lambda record: inner(record) is None, f"({operand.sql} IS NULL)")
        case exp.Between():
            value, low, high = sub(node.this), sub(node.args["low"]), sub(node.args["high"])
            first, last = _comparison(node, exp.GTE, value, low), _comparison(node, exp.LTE, value, high)
            return _logic(False, node, first, last)
        case exp.In() if node.expressions:
            return _membership(node, sub)
        case exp.Like():
            return _like(node, node, sub)
        case exp.Escape() if isinstance(node.this, exp.Like):
            return _like(node, node.this, sub, node.expression)
        case exp.Anonymous() | exp.RegexpLike():
            return _regexp(node, sub)
    if type(node) in _COMPARISONS:
        return _comparison(node, type(node), sub(node.this), sub(node.expression))
    if type(node) in _ARITHMETIC:
        return _arithmetic(node, sub(node.this), sub(node.expression))
    raise RuleError(f"`{node.sql()}` is not allowed; a rule may use {ALLOWED}")


def _column(node: exp.Column, fields: Mapping[str, str], columns: set[str]) -> _Typed:
    name = node.name
    if node.table or name not in fields:
        near = difflib.get_close_matches(node.sql(), fields, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"declared are {', '.join(fields)}"
        raise RuleError(f"names the field `{node.sql()}`, which is not declared: {hint}")
    columns.add(name)
    return _Typed(_KINDS[fields[name]], lambda record: record.get(name), f'"{name}"', fields[name] == "long")


def literal(node: exp.Expr) -> str | int | float | None:
    """Value of a literal, with its sign; None for any other node. Whole numbers beyond 64 bits are floats."""
    if isinstance(node, exp.Neg):
        value = literal(node.this) if isinstance(node.this, exp.Literal) else None
        return None if value is None or isinstance(value, str) else _whole(-value)
    if not isinstance(node, exp.Literal):
        return None
    if node.is_string:
        return str(node.this)
    number: int | float = _whole(int(node.this)) if node.is_int else float(node.this)
    if math.isinf(number):
        raise RuleError(f"`{node.sql()}` is not a finite number")
    return number


def _whole(number: int | float) -> int | float:
    # -2^63 is a long, and the 2^63 in it is not: engines take it for a decimal.
    return number if isinstance(number, float) or abs(number) in _INT64 else float(number)


def _literal(value: str | int | float) -> _Typed:
    if isinstance(value, str):
        return _Typed("string", lambda _: value, _quoted(value))
    if isinstance(value, int):
        return _Typed("number", lambda _: value, f"CAST({value} AS BIGINT)", exact=True)
    # From text, because decimals are not always rounded to the nearest double.
    return _Typed("number", lambda _: value, f"CAST('{value!r}' AS DOUBLE)")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _boolean(operand: _Typed, node: exp.Expr) -> _Typed:
    if operand.kind != "boolean":
        raise RuleError(f"`{node.sql()}` needs a true or false operand, not a {operand.kind}")
    return operand


def _logic(decisive: bool, node: exp.Expr, left: _Typed, right: _Typed) -> _Typed:
    """OR is settled by one True (``decisive``), AND by one False."""
    a, b = _boolean(left, node).evaluate, _boolean(right, node).evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        first = a(record)
        if first is decisive:
            return decisive
        second = b(record)
        if second is decisive:
            return decisive
        return None if first is None or second is None else not decisive

    return _Typed("boolean", evaluate, f"({left.sql} {'OR' if decisive else 'AND'} {right.sql})")


def _negate(operand: _Typed) -> _Typed:
    inner = operand.evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        value = inner(record)
        return None if value is None else not value

    return _Typed("boolean", evaluate, f"(NOT {operand.sql})")


def _comparison(node: exp.Expr, kind: type[exp.Expr], left: _Typed, right: _Typed) -> _Typed:
    """NULL in, NULL out."""
    if left.kind != right.kind:
        raise RuleError(f"`{node.sql()}` compares a {left.kind} with a {right.kind}; both sides must be of one type")
    if left.kind == "number" and not (left.exact and right.exact):
        left, right = _double(left), _double(right)
    compare, first, second = _COMPARISONS[kind], left.evaluate, right.evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        a, b = first(record), second(record)
        return None if a is None or b is None else compare(a, b)

    return _Typed("boolean", evaluate, f"({left.sql} {_SIGNS[kind]} {right.sql})")


def _double(operand: _Typed) -> _Typed:
    if not operand.exact:
        return operand
    inner = operand.evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        value = inner(record)
        return None if value is None else float(value)

    return _Typed("number", evaluate, f"CAST({operand.sql} AS DOUBLE)")


def _arithmetic(node: exp.Expr, left: _Typed, right: _Typed) -> _Typed:
    if {left.kind, right.kind} != {"number"}:
        raise RuleError(f"`{node.sql()}` needs numbers on both sides")
    left, right = _double(left), _double(right)
    compute, first, second = _ARITHMETIC[type(node)], left.evaluate, right.evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        a, b = first(record), second(record)
        if a is None or b is None:
            return None
        value = compute(a, b)
        return value if math.isfinite(value) else None

    sign = _SIGNS[type(node)]
    # Infinity and NaN never become finite again by these three, so only the outermost result needs to be asked; asking
    # at each step would double the text each time.
    sql = f"({left.raw or left.sql} {sign} {right.raw or right.sql})"
    return _Typed("number", evaluate, f"(CASE WHEN {sql} BETWEEN {_LOWEST} AND {_HIGHEST} THEN {sql} END)", raw=sql)


def _membership(node: exp.In, sub: Callable[[exp.Expr], _Typed]) -> _Typed:
    value = sub(node.this)
    options = []
    for option in node.expressions:
        typed = sub(option) if isinstance(option, exp.Literal | exp.Neg) else None
        if typed is None or typed.kind != value.kind:
            raise RuleError(f"`{node.sql()}`: IN takes {value.kind} literals only, not `{option.sql()}`")
        options.append(typed)
    if value.kind == "number" and not (value.exact and all(option.exact for option in options)):
        value, options = _double(value), [_double(option) for option in options]
    members, inner = frozenset(option.evaluate({}) for option in options), value.evaluate

    def evaluate(record: Mapping[str, Value]) -> Value:
        item = inner(record)
        return None if item is None else item in members

    return _Typed("boolean", evaluate, f"({value.sql} IN ({', '.join(option.sql for option in options)}))")


def _pattern(node: exp.Expr, function: str, operand: _Typed, pattern: exp.Expr | None) -> str:
    if operand.kind != "string" or not (isinstance(pattern, exp.Literal) and pattern.is_string):
        raise RuleError(f"`{node.sql()}`: {function} takes a string field and a 'text' pattern")
    return str(pattern.this)


def _matching(expression: re.Pattern[str], inner: Evaluate, sql: str) -> _Typed:
    def evaluate(record: Mapping[str, Value]) -> Value:
        text = inner(record)
        return None if text is None else expression.search(text) is not None

    return _Typed("boolean", evaluate, sql)


def _like(node: exp.Expr, like: exp.Like, sub: Callable[[exp.Expr], _Typed], escape: exp.Expr | None = None) -> _Typed:
    operand = sub(like.this)
    pattern = _pattern(node, "LIKE", operand, like.expression)
    sql = f"({operand.sql} LIKE {_quoted(pattern)})"
    if escape is not None:
        sql = f"{sql[:-1]} ESCAPE {escape.sql()})"
    return _matching(re.compile(like_regex(node), re.DOTALL), operand.evaluate, sql)


def like_regex(node: exp.Expr) -> str:
    """The regular expression of a LIKE, where the dot matches any character; for Python and RE2 alike.

    Raises:
        RuleError: the pattern means different things in different engines.
    """
    like, escape = (node.this, node.expression) if isinstance(node, exp.Escape) else (node, None)
    pattern, mark = str(like.expression.this), None
    if escape is not None:
        mark = literal(escape)
        if not isinstance(mark, str) or len(mark) != 1 or mark in "%_\\":
            raise RuleError(f"`{node.sql()}`: ESCAPE takes one character, such as '!'")
    if "\\" in pattern:
        raise RuleError(f"`{node.sql()}`: a backslash in a LIKE pattern is not portable")
    body, characters = [], iter(pattern)
    for character in characters:
        if character == mark:
            character = next(characters, "")
            if character not in ("%", "_", mark):
                raise RuleError(f"`{node.sql()}`: {mark} may stand before %, _ and {mark} only")
            body.append(re.escape(character))
        else:
            body.append({"%": ".*", "_": "."}.get(character) or re.escape(character))
    return rf"\A{''.join(body)}\Z"


def regexp_of(node: exp.Expr) -> tuple[exp.Expr, exp.Expr]:
    """Text and pattern of REGEXP(text, pattern).

    Raises:
        RuleError: another function.
    """
    if not isinstance(node, exp.Anonymous):
        return node.this, node.expression
    if node.name.upper() != "REGEXP" or len(node.expressions) != 2:
        raise RuleError(f"`{node.sql()}` is not allowed; a rule may use {ALLOWED}")
    text, pattern = node.expressions
    return text, pattern


def _regexp(node: exp.Expr, sub: Callable[[exp.Expr], _Typed]) -> _Typed:
    text, pattern_node = regexp_of(node)
    operand = sub(text)
    pattern = _pattern(node, "REGEXP", operand, pattern_node)
    if _UNPORTABLE_PATTERN.search(pattern):
        raise RuleError(
            f"`{node.sql()}`: backslashes, (?…), [:…:], possessive and very long repeats are not portable; write [0-9] "
            "instead of \\d"
        )
    if "$" in re.sub(r"\[[^]]*\]", "", pattern.removesuffix("$")):
        raise RuleError(f"`{node.sql()}`: $ may stand at the end of a pattern only")
    sql = f"REGEXP({operand.sql}, {_quoted(pattern)})"
    try:
        return _matching(
            re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern), operand.evaluate, sql
        )
    except re.error as error:
        raise RuleError(f"`{node.sql()}`: {error}") from error
