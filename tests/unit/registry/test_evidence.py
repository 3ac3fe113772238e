"""The signed record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from levada.evidence import (
    GATE_TAG,
    ROLLBACK_SIGNATURE_TAG,
    ROLLBACK_TAG,
    SIGNATURE_TAG,
    EvidenceError,
    Record,
    claimed,
    newest,
    sign,
    verify,
)

KEY = b"a key"
RECORD = Record("promoted", "3", "3", "accuracy", 0.95, None, "first", "ab" * 32, "2026-11-23T08:00:00.000000+00:00")


def tags(record: Record, *, key: bytes = KEY, model: str = "iris") -> dict[str, str]:
    text = record.to_json()
    return {GATE_TAG: text, SIGNATURE_TAG: sign(key, model, text)}


def test_what_the_gate_signed_is_read_back() -> None:
    assert verify(KEY, "iris", "3", tags(RECORD)) == RECORD


@pytest.mark.parametrize("field", list(json.loads(RECORD.to_json())))
def test_a_changed_field_breaks_the_signature(field: str) -> None:
    changed = json.loads(RECORD.to_json()) | {field: "9"}
    with pytest.raises(EvidenceError, match="not ours") as caught:
        verify(KEY, "iris", "3", {**tags(RECORD), GATE_TAG: json.dumps(changed, sort_keys=True)})
    assert caught.value.reason == "signature"


@pytest.mark.parametrize(
    ("version", "given", "reason"),
    [
        ("3", {}, "unsigned"),
        ("3", {GATE_TAG: RECORD.to_json()}, "unsigned"),
        ("3", tags(RECORD, key=b"another key"), "signature"),
        ("3", tags(RECORD, model="wine"), "signature"),  # signed, but for another model
        ("4", tags(RECORD), "record"),  # signed, but copied from another version
        ("3", tags(RECORD) | {SIGNATURE_TAG: "ä"}, "signature"),
    ],
)
def test_evidence_that_does_not_hold_is_named(version: str, given: dict[str, str], reason: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(KEY, "iris", version, given)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "text", ["", "{", "null", "7", "[1]", "{}", "[" * 100_000, "9" * 10_000, RECORD.to_json()[:-1] + ',"more":1}']
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Record"):
        Record.from_json(text)
    assert claimed([{GATE_TAG: text}, tags(RECORD), {ROLLBACK_TAG: text}]) == RECORD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("outcome", "great"), ("version", 3), ("champion", ["3"]), ("metric", None), ("value", "0.9"), ("value", None),
        ("champion_value", []), ("reason", {}), ("reason", "\ud800"), ("onnx_sha256", 7), ("decided_at", 7),
        ("decided_at", "yesterday"), ("decided_at", "0001-01-01T00:00:00+14:00"), ("generation", "9"),
        ("generation", 1.5), ("generation", None), ("approved_by", 7), ("approved_why", [1]), ("report_sha256", False),
    ],
)  # fmt: skip
def test_a_part_that_is_not_as_a_gate_writes_it_is_refused(name: str, value: Any) -> None:
    text = json.dumps(json.loads(RECORD.to_json()) | {name: value})
    with pytest.raises(ValueError, match="Record"):
        Record.from_json(text)
    assert claimed([{GATE_TAG: text}, tags(RECORD)]) == RECORD


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -3.0, 1e300])
def test_whatever_a_metric_gives_is_read_back(value: float) -> None:
    record = replace(RECORD, value=value, champion_value=value)
    assert repr(Record.from_json(record.to_json())) == repr(record)


def test_the_newest_record_that_verifies_counts() -> None:
    later = replace(RECORD, version="4", outcome="refused", decided_at="2026-11-23T09:00:00.000000+00:00")
    forged = tags(replace(RECORD, version="5", decided_at="2027-01-01T00:00:00.000000+00:00"), key=b"another key")
    assert newest(KEY, "iris", [("4", tags(later)), ("3", tags(RECORD)), ("5", forged), ("6", {})]) == later
    assert newest(KEY, "iris", [("5", forged)]) is None


def test_a_later_generation_beats_a_later_clock() -> None:
    moved = replace(RECORD, version="4", champion="4", generation=2)
    late = replace(RECORD, version="5", outcome="kept", generation=1, decided_at="2027-01-01T00:00:00.000000+00:00")
    assert newest(KEY, "iris", [("4", tags(moved)), ("5", tags(late))]) == moved


@pytest.mark.row(47, part="a signed record")
def test_a_roll_back_is_believed_from_either_version_if_it_is_signed() -> None:
    second = replace(RECORD, version="4", champion="4", generation=2)
    back = replace(second, outcome="rolled back", champion="3", generation=3)
    text = back.to_json()
    beside = {ROLLBACK_TAG: text, ROLLBACK_SIGNATURE_TAG: sign(KEY, "iris", text)}
    assert newest(KEY, "iris", [("3", tags(RECORD) | beside), ("4", tags(second))]) == back
    assert newest(KEY, "iris", [("3", tags(RECORD)), ("4", tags(second) | beside)]) == back
    assert verify(KEY, "iris", "3", tags(RECORD) | beside) == RECORD
    forged = {**beside, ROLLBACK_SIGNATURE_TAG: sign(b"another key", "iris", text)}
    assert newest(KEY, "iris", [("3", tags(RECORD) | forged), ("4", tags(second))]) == second
