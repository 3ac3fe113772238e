"""Rules over whole columns: the same expressions as :mod:`levada.rules`, evaluated by Arrow's kernels.

For a sink the closures of a rule would be the largest cost of an event; over a column they are the smallest. A rule
that is not TRUE here sends its event to the exact check, which finds the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from levada.rules import Rule, like_regex, literal, regexp_of

Columns = Mapping[str, Any]
"""Name → Arrow array, all of one length."""

_COMPARE: Final[dict[type[exp.Expr], Callable[[Any, Any], Any]]] = {
    exp.EQ: pc.equal,
    exp.NEQ: pc.not_equal,
    exp.LT: pc.less,
    exp.LTE: pc.less_equal,
    exp.GT: pc.greater,
    exp.GTE: pc.greater_equal,
}
_COMPUTE: Final[dict[type[exp.Expr], Callable[[Any, Any], Any]]] = {
    exp.Add: pc.add,
    exp.Sub: pc.subtract,
    exp.Mul: pc.multiply,
}
_DOUBLE: Final = pa.float64()


def passes(rule: Rule, columns: Columns, length: int) -> Any:
    """A boolean array of ``length``: whether each event keeps the rule; NULL does not."""
    value = _evaluate(rule.tree, columns)
    if isinstance(value, pa.Scalar):
        return pa.repeat(pa.scalar(value.as_py() is True), length)
    return pc.fill_null(value, False)


def _evaluate(node: exp.Expr, columns: Columns) -> Any:
    match node:
        case exp.Paren():
            return _evaluate(node.this, columns)
        case exp.Column():
            return columns[node.name]
        case exp.Literal() | exp.Neg():
            return pa.scalar(literal(node))
        case exp.Boolean():
            return pa.scalar(bool(node.this))
        case exp.And():
            return pc.and_kleene(_evaluate(node.this, columns), _evaluate(node.expression, columns))
        case exp.Or():
            return pc.or_kleene(_evaluate(node.this, columns), _evaluate(node.expression, columns))
        case exp.Not():
            return pc.invert(_evaluate(node.this, columns))
        case exp.Is():
            return pc.is_null(_evaluate(node.this, columns))
        case exp.Between():
            value = _evaluate(node.this, columns)
            low, high = _evaluate(node.args["low"], columns), _evaluate(node.args["high"], columns)
            return pc.and_kleene(_compare(exp.GTE, value, low), _compare(exp.LTE, value, high))
        case exp.In():
            return _among(_evaluate(node.this, columns), [literal(option) for option in node.expressions])
        case exp.Like() | exp.Escape():
            like = node.this if isinstance(node, exp.Escape) else node
            return _match(_evaluate(like.this, columns), "(?s)" + like_regex(node).removesuffix(r"\Z") + r"\z")
        case exp.Anonymous() | exp.RegexpLike():
            text, pattern = regexp_of(node)
            return _match(_evaluate(text, columns), str(pattern.this))
    if type(node) in _COMPARE:
        return _compare(type(node), _evaluate(node.this, columns), _evaluate(node.expression, columns))
    value = _COMPUTE[type(node)](
        _as_double(_evaluate(node.this, columns)), _as_double(_evaluate(node.expression, columns))
    )
    return pc.if_else(pc.is_finite(value), value, pa.scalar(None, _DOUBLE))


def _as_double(value: Any) -> Any:
    # Not safe: above 2^53 a long is rounded, as everywhere else.
    return pc.cast(value, _DOUBLE, safe=False) if pa.types.is_integer(value.type) else value


def _compare(kind: type[exp.Expr], left: Any, right: Any) -> Any:
    if pa.types.is_floating(left.type) or pa.types.is_floating(right.type):
        left, right = _as_double(left), _as_double(right)
    elif pa.types.is_boolean(left.type):
        left, right = pc.cast(left, pa.int8()), pc.cast(right, pa.int8())  # Arrow does not order booleans
    return _COMPARE[kind](left, right)


def _among(value: Any, options: list[Any]) -> Any:
    if pa.types.is_floating(value.type) or any(isinstance(option, float) for option in options):
        # Arrow looks a number up by its bits; plus zero makes one zero of both.
        value, options = pc.add(_as_double(value), 0.0), [float(option) + 0.0 for option in options]
    found = pc.is_in(value, value_set=pa.array(options, value.type))
    return pc.if_else(pc.is_valid(value), found, pa.scalar(None, pa.bool_()))


def _match(text: Any, pattern: str) -> Any:
    return pc.match_substring_regex(text, pattern)
