"""Which model answers: looks at the registry, verifies, and swaps the champion while requests go on."""

from __future__ import annotations

import hashlib
import random
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import httpx
import structlog
from prometheus_client import Counter, Gauge

from levada import evidence
from levada.event import Checker
from levada.evidence import ALIAS, MODEL_FILE, SNAPSHOT_TAG, EvidenceError, Record
from levada.pipeline import Field, Pipeline
from levada.scoring import OnnxModel, ScoringError
from levada.serving.registry import Registry, Version

log = structlog.get_logger()

INFO: Final = Gauge("levada_model_version_info", "1 for the model version that answers", ["name", "version"])
SWAPS: Final = Counter("levada_model_swaps_total", "Models that were taken into service", ["name"])
REFUSED: Final = Counter(
    "levada_model_refused_total",
    "Versions behind the champion alias that were not served, by reason",
    ["name", "reason"],
)
POLL_ERRORS: Final = Counter("levada_model_poll_errors_total", "Looks at the registry that failed", ["name"])


@dataclass(frozen=True)
class Champion:
    """A verified model, ready to answer."""

    name: str
    version: str
    run_id: str
    snapshot: str
    """Iceberg snapshot it was trained on."""
    loaded_at: str
    model: OnnxModel
    checker: Checker
    """Checks one row of features."""


class Watcher:
    """Keeps :attr:`champion` at the version that the gate's newest signed record names.

    The alias is only a sign to look: a version serves when the record in its tags is signed with the gate's key,
    says *promoted*, is the newest one, and carries the hash of the very model file that was loaded. So an alias or
    tag changed by hand changes nothing. Whatever fails, the last good model goes on answering.
    """

    def __init__(self, registry: Registry, name: str, key: bytes) -> None:
        self._registry = registry
        self._name = name
        self._key = key
        self._refused: tuple[str, str] | None = None
        self._nothing_promoted = False
        self.champion: Champion | None = None

    @property
    def ready(self) -> bool:
        """Whether requests can be answered as well as they ever can: by a champion, or by 503 while there is none.

        A line that was just installed has no model; its predictor is ready, or no installation could wait for it.
        """
        return self.champion is not None or self._nothing_promoted

    def run(self, stop: threading.Event, every: float) -> None:
        """Look about every ``every`` seconds until ``stop``."""
        while not stop.is_set():
            self.look()
            # Replicas that start together shall not ask together for ever.
            stop.wait(every * random.uniform(0.8, 1.2))  # noqa: S311

    def look(self) -> None:
        """Look once and swap if there is a new champion; never raises for what the registry says."""
        try:
            alias = self._registry.alias(self._name, ALIAS)
            if self.champion is None or (alias is not None and alias.number != self.champion.version):
                self._follow(alias)
        except (httpx.HTTPError, KeyError, ValueError) as error:
            POLL_ERRORS.labels(self._name).inc()
            log.warning("the registry cannot be read", model=self._name, error=f"{type(error).__name__}: {error}")

    def _follow(self, alias: Version | None) -> None:
        versions = {version.number: version for version in self._registry.recent(self._name)}
        if alias is not None:
            versions.setdefault(alias.number, alias)
        newest = evidence.newest(self._key, self._name, ((v.number, v.tags) for v in versions.values()))
        chosen = newest.champion if newest is not None else None
        if alias is not None and alias.number != chosen:
            self._refuse(alias.number, *self._why_not(alias))
        self._nothing_promoted = chosen is None
        if chosen is None or (self.champion is not None and self.champion.version == chosen):
            return
        version = versions.get(chosen) or self._registry.version(self._name, chosen)
        try:
            champion = self._load(version)
        except (EvidenceError, ScoringError) as error:
            self._refuse(chosen, error.reason if isinstance(error, EvidenceError) else "model", str(error))
            return
        self._swap(champion)

    def _why_not(self, alias: Version) -> tuple[str, str]:
        try:
            record = evidence.verify(self._key, self._name, alias.number, alias.tags)
        except EvidenceError as error:
            return error.reason, str(error)
        if record.outcome != "promoted":
            return "gate", f"the gate did not promote it: {record.reason}"
        return "superseded", "the gate's newest record names another version"

    def _load(self, version: Version) -> Champion:
        record: Record = evidence.verify(self._key, self._name, version.number, version.tags)
        if record.outcome != "promoted":
            raise EvidenceError("gate", f"the gate did not promote it: {record.reason}")
        raw = self._registry.download(version.run_id, MODEL_FILE)
        if hashlib.sha256(raw).hexdigest() != record.onnx_sha256:
            raise EvidenceError("hash", "its model file is not the one that the gate judged")
        model = OnnxModel(raw)
        model.check()
        fields = {f.name: Field(type=f.type, required=f.required) for f in model.meta.features}
        return Champion(
            name=self._name,
            version=version.number,
            run_id=version.run_id,
            snapshot=version.tags.get(SNAPSHOT_TAG, ""),
            loaded_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            model=model,
            checker=Checker(Pipeline(name=self._name, fields=fields)),
        )

    def _swap(self, champion: Champion) -> None:
        before = self.champion
        # One reference: a request sees the old model or the new one, never a mixture.
        self.champion = champion
        self._refused = None
        SWAPS.labels(self._name).inc()
        INFO.clear()
        INFO.labels(self._name, champion.version).set(1)
        log.info(
            "serving", model=self._name, version=champion.version, run_id=champion.run_id,
            before=before.version if before is not None else None,
        )  # fmt: skip

    def _refuse(self, version: str, reason: str, message: str) -> None:
        # The alias is looked at every few seconds; what is wrong with it is told once.
        if self._refused != (version, reason):
            self._refused = (version, reason)
            REFUSED.labels(self._name, reason).inc()
            log.error("version not served", model=self._name, version=version, reason=reason, message=message)
