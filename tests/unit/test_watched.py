"""What a look at a champion leaves: that it is read as it was written, and that nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from levada.watched import Shadowed, Watched

GOOD = Watched(
    "2026-11-28T10:00:00+00:00", 900, "accuracy", 120, 0.91, float("inf"), None, {"x": 0.31}, 0.2, ("x: …",), "a note",
    Shadowed("5", 80, 0.9, 40, 0.8, 0.7),
)  # fmt: skip


def test_it_is_read_as_it_was_written() -> None:
    assert Watched.from_json(GOOD.to_json()) == GOOD
    few = Watched("2026-11-28T10:00:00+00:00", 3, "accuracy")
    assert Watched.from_json(few.to_json()) == few


@pytest.mark.parametrize(
    "text", ["", "{", "null", "7", '"x"', "[1]", "[" * 100_000, '{"a":' * 100_000, "{}", "\ud800", "9" * 10_000]
)
def test_what_is_no_mapping_of_its_parts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Watched"):
        Watched.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at", 7), ("at", "yesterday"), ("at", "0001-01-01T00:00:00+14:00"), ("rows", "900"), ("rows", None),
        ("rows", 10**400), ("rows", -1), ("metric", ["a"]), ("metric", "\ud800"), ("labelled", 1.5), ("value", "0.9"),
        ("value", [0.9]), ("drift", [1]), ("drift", {"x": "much"}), ("drift", {"x": None}), ("drift", {"\ud800": 1}),
        ("bound", {}), ("alarms", "x"), ("alarms", [1]), ("alarms", None), ("shadow", [1]), ("shadow", {"version": 5}),
    ],
)  # fmt: skip
def test_a_part_that_is_not_as_written_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="Watched"):
        Watched.from_json(json.dumps(json.loads(GOOD.to_json()) | {name: value}))
