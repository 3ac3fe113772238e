"""One rule means one thing: Python closures, Arrow's kernels and DuckDB agree on what the allow-list allows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from levada import rules
from levada.stream import vector

FIELDS = {"n": "double", "m": "double", "k": "long", "j": "long", "s": "string", "r": "string", "b": "boolean",
          "t": "timestamp", "u": "timestamp"}  # fmt: skip
ARROW = {"double": pa.float64(), "long": pa.int64(), "string": pa.string(), "boolean": pa.bool_(),
         "timestamp": pa.timestamp("us", tz="UTC")}  # fmt: skip
EDGES = [0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 10**15]
TEXT = st.text(st.sampled_from("ab%_!.\n 0é漢𝄞'") | st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
LONG = st.sampled_from(EDGES) | st.integers(-5, 5)
DOUBLE = st.sampled_from([*map(float, EDGES), 1e308, -1e308, 5e-324, 0.1, 0.3]) | st.floats(-5, 5)
TIME = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
RECORD = st.fixed_dictionaries(
    {"n": DOUBLE, "m": DOUBLE, "k": LONG, "j": LONG, "s": TEXT, "r": TEXT, "b": st.booleans(), "t": TIME, "u": TIME}
).flatmap(lambda record: st.sets(st.sampled_from(list(record))).map(
    lambda without: {name: None if name in without else value for name, value in record.items()}))  # fmt: skip


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\\\0"), max_size=4)
NUMBER = st.sampled_from([*map(str, EDGES), "99999999999999999999", "0.1", "0.30000000000000004", "1e308", "1.5e-7",
                          "12345678901234567.25", "-3", "-0.5"])  # fmt: skip
LIKE = PLAIN.map(lambda text: quoted(text)) | st.lists(
    st.sampled_from(["!%", "!_", "!!", "%", "_", "a", "é"]), max_size=4
).map(lambda parts: quoted("".join(parts)) + " ESCAPE '!'")
PATTERN = st.sampled_from(
    ["^[0-9]{4}$", "a|b", "^a", "b$", "[^a-c]", "(a|é)+", "a.b", "^.?$", "_{1,3}", "a*?b", "漢", "[%_]"]
)
COMPARE = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])
numbers = st.deferred(
    lambda: st.sampled_from(["n", "m", "k", "j"]) | NUMBER
    | st.tuples(numbers, st.sampled_from("+-*"), numbers).map(lambda parts: f"({' '.join(parts)})")
)  # fmt: skip
strings = st.sampled_from(["s", "r"]) | PLAIN.map(quoted)
times = st.sampled_from(["t", "u"])
atoms = (
    st.tuples(numbers, COMPARE, numbers).map(" ".join)
    | st.tuples(strings, COMPARE, strings).map(" ".join)
    | st.tuples(times, COMPARE, times).map(" ".join)
    | st.tuples(st.just("b"), COMPARE, st.sampled_from(["b", "TRUE", "FALSE"])).map(" ".join)
    | st.tuples(numbers, st.sampled_from(["BETWEEN", "NOT BETWEEN"]), numbers, st.just("AND"), numbers).map(" ".join)
    | st.tuples(strings, st.just("BETWEEN"), strings, st.just("AND"), strings).map(" ".join)
    | st.tuples(numbers, st.sampled_from(["IN", "NOT IN"]), st.lists(NUMBER, min_size=1, max_size=3)).map(
        lambda parts: f"{parts[0]} {parts[1]} ({', '.join(parts[2])})")
    | st.tuples(strings, st.sampled_from(["IN", "NOT IN"]), st.lists(PLAIN.map(quoted), min_size=1, max_size=3)).map(
        lambda parts: f"{parts[0]} {parts[1]} ({', '.join(parts[2])})")
    | st.tuples(st.sampled_from(["s", "r"]), st.sampled_from(["LIKE", "NOT LIKE"]), LIKE).map(" ".join)
    | st.tuples(st.sampled_from(["s", "r"]), PATTERN).map(lambda parts: f"REGEXP({parts[0]}, {quoted(parts[1])})")
    | st.tuples(numbers | strings | times | st.just("b"), st.sampled_from(["IS NULL", "IS NOT NULL"])).map(" ".join)
    | st.sampled_from(["b", "TRUE", "FALSE"])
)  # fmt: skip
expressions = st.recursive(
    atoms,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda parts: f"({' '.join(parts)})")
        | inner.map(lambda text: f"NOT ({text})")
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def engine() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_external_access = false")
    connection.execute("CREATE MACRO REGEXP(text, pattern) AS regexp_matches(text, pattern)")
    return connection


def by_duckdb(engine: duckdb.DuckDBPyConnection, rule: rules.Rule, table: pa.Table) -> list[bool | None]:
    engine.register("records", table)
    return [value for (value,) in engine.execute(f"SELECT {rule.sql} FROM records").fetchall()]


@settings(max_examples=150, deadline=None)
@given(text=expressions, records=st.lists(RECORD, min_size=1, max_size=5))
@example("k * k > 0", [dict.fromkeys(FIELDS) | {"k": 2**62}])
@example("n * 1e308 - n * 1e308 = 0", [dict.fromkeys(FIELDS) | {"n": 1e5}])
@example("k = 9007199254740993.0", [dict.fromkeys(FIELDS) | {"k": 2**53 + 1}])
@example("k IN (9007199254740992.0)", [dict.fromkeys(FIELDS) | {"k": 2**53 + 1}])
@example("n NOT IN (0)", [dict.fromkeys(FIELDS) | {"n": -0.0}])
@example("n IN (-0.0)", [dict.fromkeys(FIELDS) | {"n": 0.0}])
@example("REGEXP(s, '^[0-9]{4}$')", [dict.fromkeys(FIELDS) | {"s": "1234\n"}])
@example("k > -9223372036854775808", [dict.fromkeys(FIELDS) | {"k": -(2**63)}])
def test_all_evaluators_agree(engine: duckdb.DuckDBPyConnection, text: str, records: list[dict[str, Any]]) -> None:
    try:
        rule = rules.parse(text, FIELDS)
    except rules.RuleError:
        return
    expected = [rule.evaluate(record) for record in records]
    table = pa.table(
        {name: pa.array([record[name] for record in records], ARROW[kind]) for name, kind in FIELDS.items()}
    )
    assert by_duckdb(engine, rule, table) == expected, rule.sql
    columns = {name: table[name].combine_chunks() for name in FIELDS}
    assert vector.passes(rule, columns, len(records)).to_pylist() == [value is True for value in expected]


def test_most_generated_expressions_are_rules() -> None:
    """The test above means nothing if the allow-list refuses what it generates."""
    found: list[bool] = []

    @settings(max_examples=200, deadline=None, database=None)
    @given(expressions)
    def collect(text: str) -> None:
        try:
            rules.parse(text, FIELDS)
            found.append(True)
        except rules.RuleError:
            found.append(False)

    collect()
    assert sum(found) > 0.8 * len(found)
