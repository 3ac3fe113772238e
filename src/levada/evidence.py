"""The gate's signed record: why a model version may serve.

The gate writes one record a version into the registry, as two tags; the predictor believes no alias but the newest
record whose signature verifies. So a tag or alias that was written by another hand changes nothing.

A roll-back is a record too, in two tags of its own: what the gate said of a version stays as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter

from levada.moment import Moment

RUN_TAG: Final = "levada.run"
SNAPSHOT_TAG: Final = "levada.snapshot"
GATE_TAG: Final = "levada.gate"
SIGNATURE_TAG: Final = "levada.gate.signature"
ROLLBACK_TAG: Final = "levada.rollback"
ROLLBACK_SIGNATURE_TAG: Final = "levada.rollback.signature"
EXAMPLE_TAG: Final = "levada.example.sha256"
"""Hex digest of :data:`EXAMPLE_FILE`."""
ALIAS: Final = "champion"
MODEL_FILE: Final = "onnx/model.onnx"
EXAMPLE_FILE: Final = "onnx/example.json"
"""``{"instances": [at most 5 rows], "scores": [one list a row]}``: what the model must answer wherever it is loaded."""

Outcome = Literal["promoted", "kept", "refused", "needs approval", "rolled back"]
"""Kept: good enough, but not better than the champion, which stays. Refused: not good enough for any use. Needs
approval: the data or the evidence is not such that a program should decide. Rolled back: a person took it out again."""


class EvidenceError(ValueError):
    """A version whose evidence does not hold.

    Attributes:
        reason: one word for metrics: ``unsigned``, ``signature``, ``record``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """The gate's decision on one version."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    outcome: Outcome
    version: str
    """The version that was judged."""
    champion: str | None
    """The version that serves after the decision; None while there is none."""
    metric: str
    value: float
    """The metric of the judged version on the frozen evaluation set."""
    champion_value: float | None
    """The metric of the champion before the decision, on the same set; None if there was none to compare with."""
    reason: str
    onnx_sha256: str
    """Hex digest of the judged model file."""
    decided_at: Moment
    """RFC 3339 in UTC with microseconds, later than every earlier decision on the same model."""
    generation: int = 0
    """How often the champion had changed, this decision included; a decision that changes nothing repeats it."""
    approved_by: str | None = None
    """Who let it serve where the gate alone would not have decided, or rolled it back."""
    approved_why: str | None = None
    """Why, in that person's words."""
    report_sha256: str | None = None
    """Hex digest of the report, which has the digests of all data that was looked at."""

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: it is no record. Any hand may write a tag, so nothing of it is believed.
        """
        return _READER.validate_json(text, strict=True)


_READER: Final = TypeAdapter(Record)


def sign(key: bytes, model: str, record: str) -> str:
    """Hex HMAC-SHA256 of a model's name and the JSON of a record."""
    return hmac.new(key, f"{model}\n{record}".encode(), hashlib.sha256).hexdigest()


def verify(key: bytes, model: str, version: str, tags: Mapping[str, str]) -> Record:
    """The gate's record in a version's tags.

    Raises:
        EvidenceError: there is none, its signature is not ours, or it is about another version.
    """
    text, signature = tags.get(GATE_TAG), tags.get(SIGNATURE_TAG)
    record = _read(key, model, version, text, signature)
    if record.version != version:
        raise EvidenceError("record", f"{model} version {version} carries the record of version {record.version}")
    return record


def newest(key: bytes, model: str, versions: Iterable[tuple[str, Mapping[str, str]]]) -> Record | None:
    """The latest decision among versions given as (version, tags); those that do not verify are passed over.

    A roll-back counts wherever it is found. It is written to both versions it is about, so it is seen from the one
    that the alias names, however many versions were trained since.
    """
    records = []
    for version, tags in versions:
        with contextlib.suppress(EvidenceError):
            records.append(verify(key, model, version, tags))
        with contextlib.suppress(EvidenceError):
            records.append(_read(key, model, version, tags.get(ROLLBACK_TAG), tags.get(ROLLBACK_SIGNATURE_TAG)))
    return latest(records)


def claimed(versions: Iterable[Mapping[str, str]]) -> Record | None:
    """The latest decision that the tags of some versions tell of, unproven: for who has no business with the key."""
    records = []
    for tags in versions:
        for tag in (GATE_TAG, ROLLBACK_TAG):
            with contextlib.suppress(ValueError):
                records.append(Record.from_json(tags.get(tag, "")))
    return latest(records)


def latest(records: Iterable[Record]) -> Record | None:
    """The latest decision of some."""
    return max(records, key=lambda record: (record.generation, record.decided_at), default=None)


def _read(key: bytes, model: str, version: str, text: str | None, signature: str | None) -> Record:
    if text is None or signature is None:
        raise EvidenceError("unsigned", f"{model} version {version} has no signed record of the gate")
    if not hmac.compare_digest(sign(key, model, text).encode(), signature.encode()):
        raise EvidenceError("signature", f"{model} version {version}: the signature of the gate's record is not ours")
    try:
        return Record.from_json(text)
    except ValueError as error:
        raise EvidenceError("record", f"{model} version {version}: the gate's record cannot be read") from error
