"""The gate's signed record: why a model version may serve.

The gate writes one record a version into the registry, as two tags; the predictor believes no alias but the newest
record whose signature verifies. So a tag or alias that was written by another hand changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

RUN_TAG: Final = "levada.run"
SNAPSHOT_TAG: Final = "levada.snapshot"
GATE_TAG: Final = "levada.gate"
SIGNATURE_TAG: Final = "levada.gate.signature"
ALIAS: Final = "champion"
MODEL_FILE: Final = "onnx/model.onnx"


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

    outcome: Literal["promoted", "kept", "refused"]
    version: str
    """The version that was judged."""
    champion: str | None
    """The version that serves after the decision; None while there is none."""
    metric: str
    value: float
    """The metric of the judged version on its frozen evaluation set."""
    champion_value: float | None
    """The metric of the champion before the decision, on the same set; None if there was none to compare with."""
    reason: str
    onnx_sha256: str
    """Hex digest of the judged model file."""
    decided_at: str
    """RFC 3339 in UTC with microseconds, later than every earlier decision on the same model."""

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def sign(key: bytes, model: str, record: str) -> str:
    """Hex HMAC-SHA256 of a model's name and the JSON of a record."""
    return hmac.new(key, f"{model}\n{record}".encode(), hashlib.sha256).hexdigest()


def verify(key: bytes, model: str, version: str, tags: Mapping[str, str]) -> Record:
    """The record in a version's tags.

    Raises:
        EvidenceError: there is none, its signature is not ours, or it is about another version.
    """
    text, signature = tags.get(GATE_TAG), tags.get(SIGNATURE_TAG)
    if text is None or signature is None:
        raise EvidenceError("unsigned", f"{model} version {version} has no signed record of the gate")
    if not hmac.compare_digest(sign(key, model, text).encode(), signature.encode()):
        raise EvidenceError("signature", f"{model} version {version}: the signature of the gate's record is not ours")
    try:
        record = Record(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise EvidenceError("record", f"{model} version {version}: the gate's record cannot be read") from error
    if record.version != version:
        raise EvidenceError("record", f"{model} version {version} carries the record of version {record.version}")
    return record


def newest(key: bytes, model: str, versions: Iterable[tuple[str, Mapping[str, str]]]) -> Record | None:
    """The latest decision among versions given as (version, tags); those that do not verify are passed over."""
    records = []
    for version, tags in versions:
        try:
            records.append(verify(key, model, version, tags))
        except EvidenceError:
            continue
    return max(records, key=lambda record: record.decided_at, default=None)
