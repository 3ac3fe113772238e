"""Which model answers: looks at the registry, verifies, and swaps the champion while requests go on."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

import numpy as np
import orjson
import structlog
from prometheus_client import Counter, Gauge

from levada import evidence
from levada.evidence import ALIAS, EXAMPLE_FILE, EXAMPLE_TAG, MODEL_FILE, SNAPSHOT_TAG, EvidenceError, Outcome, Record
from levada.http.problem import Problem
from levada.scoring import OnnxModel, ScoringError
from levada.serving.cache import Cache
from levada.serving.loaded import Loaded
from levada.serving.quality import Quality
from levada.serving.registry import Registry, RegistryError, Version

_FIRST: Final = 50
"""Versions that are looked at when nothing is known yet, from the newest down; later, those that are not forgotten."""
_RECENT: Final = 5
"""The same for each later look; what an older one is decided to be is seen at the alias."""
_AGAIN_SECONDS: Final = 60.0
"""After which a version that was refused is tried again: its files may be repaired."""
_TOLERANCE: Final = 1e-5
"""Largest difference between the scores of an example and those found here, in parts of the largest of them."""
_SERVES: Final[tuple[Outcome, ...]] = ("promoted",)
_SHADOWS: Final[tuple[Outcome, ...]] = ("kept", "needs approval")

log = structlog.get_logger()

INFO: Final = Gauge("levada_model_version_info", "1 for the model version that answers", ["name", "version"])
SWAPS: Final = Counter("levada_model_swaps_total", "Models that were taken into service", ["name"])
REFUSED: Final = Counter(
    "levada_model_refused_total",
    "Versions behind the champion alias, or named by the gate, that were not served, by reason",
    ["name", "reason"],
)
WAITING: Final = Gauge("levada_model_waiting", "Versions newer than the champion that wait for an approval", ["name"])
POLL_ERRORS: Final = Counter("levada_model_poll_errors_total", "Looks at the registry that failed", ["name"])


class _Judged(NamedTuple):
    """A version, and what the signed records in its tags say."""

    version: Version
    outcome: Outcome | None
    """What the gate said of it; None if it did not."""
    newest: Record | None
    """The latest decision of gate and people."""


class Watcher:
    """Keeps :attr:`champion` at the version that the gate's newest signed record names.

    The alias is only a sign to look: a version serves when the record in its tags is signed with the gate's key,
    says *promoted*, is the newest one or named by a roll-back, carries the hash of the very model file that was loaded,
    and answers its example as it did in training. So an alias or tag changed by hand changes nothing. Whatever fails,
    the last good model goes on answering; a process that starts without the registry begins with its cache.
    """

    def __init__(self, registry: Registry, cache: Cache, name: str, key: bytes, *, shadow: bool = False) -> None:
        """Watch one model.

        Args:
            registry: where versions are.
            cache: what is left of them on disk.
            name: the model.
            key: the gate's.
            shadow: whether a challenger is loaded, too.
        """
        self._registry = registry
        self._cache = cache
        self._name = name
        self._key = key
        self._shadow = shadow
        self._versions: dict[str, _Judged] = {}
        self._told: set[tuple[str, str]] = set()
        self._failed: dict[str, tuple[Version, float]] = {}
        self._nothing_promoted = False
        self._quality = Quality()
        self.champion: Loaded | None = None
        self.challenger: Loaded | None = None
        """The newest version that the gate let live without promoting it, where it is newer than the champion."""

    @property
    def ready(self) -> bool:
        """Whether requests can be answered as well as they ever can: by a champion, or by 503 while there is none.

        A line that was just installed has no model; its predictor is ready, or no installation could wait for it.
        """
        return self.champion is not None or self._nothing_promoted

    def run(self, stop: threading.Event, every: float) -> None:
        """Look about every ``every`` seconds until ``stop``."""
        while not stop.is_set():
            try:
                self.look()
            except Exception as error:  # without this thread the champion would never change again
                POLL_ERRORS.labels(self._name).inc()
                log.error("a look at the registry broke off", model=self._name, exc_info=error)
            # Replicas that start together shall not ask together for ever.
            stop.wait(every * random.uniform(0.8, 1.2))  # noqa: S311

    def look(self) -> None:
        """Look once and swap if there is a new champion; never raises for what the registry says."""
        try:
            alias = self._registry.alias(self._name, ALIAS)
            found = self._registry.recent(self._name, _RECENT if self._versions else _FIRST)
            for version in (*found, *filter(None, [alias])):
                self._learn(version)
            before = self.champion, self.challenger, self._failed
            self._follow(alias)
            if self._shadow:
                self._follow_challenger()
            self._forget(alias)
            if before != (self.champion, self.challenger, self._failed):  # files may have come
                self._tidy()
            WAITING.labels(self._name).set(sum(known.outcome == "needs approval" for known in self._newer()))
            if self.champion is not None and self.champion.version in self._versions:
                self._quality.show(self._name, self._versions[self.champion.version].version)
        except (RegistryError, KeyError, ValueError) as error:
            POLL_ERRORS.labels(self._name).inc()
            log.warning("the registry cannot be read", model=self._name, error=f"{type(error).__name__}: {error}")
            if self.champion is None:
                self._begin_without()

    def _begin_without(self) -> None:
        """Take into service what served when this pod last saw a registry whose records are ours."""
        known = {version.number: version for version in self._cache.versions()}
        newest = evidence.newest(self._key, self._name, ((v.number, v.tags) for v in known.values()))
        if newest is None or newest.champion not in known:
            return
        try:
            self._swap(self._load(known[newest.champion], _SERVES))
        except (RegistryError, EvidenceError, ScoringError) as error:
            log.error("the cache has no model that can serve", model=self._name, error=str(error))

    def _learn(self, version: Version) -> None:
        known = self._versions.get(version.number)
        if known is None or known.version != version:  # else its signatures are known, too
            one = [(version.number, version.tags)]
            newest = evidence.newest(self._key, self._name, one)
            self._versions[version.number] = _Judged(version, self._outcome(version), newest)

    def _forget(self, alias: Version | None) -> None:
        """Forget versions that are too old to matter, and what was told of them."""
        kept = {*sorted(self._versions, key=int, reverse=True)[:_FIRST]}
        kept |= {each.version for each in (self.champion, self.challenger) if each is not None}
        kept |= {alias.number} if alias is not None else set()
        self._versions = {number: known for number, known in self._versions.items() if number in kept}
        self._told = {(number, reason) for number, reason in self._told if number in kept}
        self._failed = {number: failed for number, failed in self._failed.items() if number in kept}

    def _follow(self, alias: Version | None) -> None:
        newest = evidence.latest(known.newest for known in self._versions.values() if known.newest is not None)
        chosen = newest.champion if newest is not None else None
        if alias is not None and alias.number != chosen:
            self._refuse(alias.number, *self._why_not(alias))
        if chosen is None:
            # Records of which none is ours are no new line: key or tags were changed, and pods that answer must stay.
            told = evidence.claimed(known.version.tags for known in self._versions.values())
            self._nothing_promoted = alias is None and (told is None or told.champion is None)
            if self.champion is None and not self._nothing_promoted:
                self._begin_without()
            return
        self._nothing_promoted = False
        if self.champion is not None and self.champion.version == chosen:
            return
        if chosen not in self._versions:
            self._learn(self._registry.version(self._name, chosen))
        champion = self._try(self._versions[chosen].version, _SERVES)
        if champion is not None:
            self._swap(champion)
            self._cache.remember(known.version for known in self._versions.values())

    def _follow_challenger(self) -> None:
        chosen = None
        if self.champion is not None:
            chosen = next((known.version for known in self._newer() if known.outcome in _SHADOWS), None)
        if chosen is None:
            self.challenger = None
        elif self.challenger is None or self.challenger.version != chosen.number:
            self.challenger = self._try(chosen, _SHADOWS)

    def _newer(self) -> Iterator[_Judged]:
        """Versions after the champion, or all, the newest first."""
        least = int(self.champion.version) if self.champion is not None else 0
        for number in sorted(self._versions, key=int, reverse=True):
            if int(number) > least:
                yield self._versions[number]

    def _outcome(self, version: Version) -> Outcome | None:
        try:
            return evidence.verify(self._key, self._name, version.number, version.tags).outcome
        except EvidenceError:
            return None

    def _why_not(self, alias: Version) -> tuple[str, str]:
        try:
            record = evidence.verify(self._key, self._name, alias.number, alias.tags)
        except EvidenceError as error:
            return error.reason, str(error)
        if record.outcome != "promoted":
            return "gate", f"the gate did not promote it: {record.reason}"
        return "superseded", "the gate's newest record names another version"

    def _try(self, version: Version, outcomes: Collection[Outcome]) -> Loaded | None:
        before, until = self._failed.get(version.number, (None, 0.0))
        if before == version and time.monotonic() < until:
            return None  # to load it takes time from requests
        try:
            return self._load(version, outcomes)
        except (EvidenceError, ScoringError) as error:
            self._failed = {**self._failed, version.number: (version, time.monotonic() + _AGAIN_SECONDS)}
            self._refuse(version.number, error.reason if isinstance(error, EvidenceError) else "model", str(error))
            return None

    def _load(self, version: Version, outcomes: Collection[Outcome]) -> Loaded:
        record = evidence.verify(self._key, self._name, version.number, version.tags)
        if record.outcome not in outcomes:
            raise EvidenceError("gate", f"the gate did not promote it: {record.reason}")
        onnx = OnnxModel(self._file(version, MODEL_FILE, record.onnx_sha256, "the one that the gate judged"))
        snapshot = version.tags.get(SNAPSHOT_TAG, "")
        model = Loaded(self._name, version.number, onnx, run_id=version.run_id, snapshot=snapshot)
        digest = version.tags.get(EXAMPLE_TAG)
        if digest is None:
            onnx.check()
        else:
            replay(model, self._file(version, EXAMPLE_FILE, digest, "the one that its tag names"))
        return model

    def _file(self, version: Version, path: str, sha256: str, meant: str) -> bytes:
        raw = self._cache.read(version.number, sha256)
        if raw is None:
            raw = self._registry.download(version.run_id, path)
            if hashlib.sha256(raw).hexdigest() != sha256:
                raise EvidenceError("hash", f"its file {path} is not {meant}")
            self._cache.write(version.number, sha256, raw)
        return raw

    def _swap(self, champion: Loaded) -> None:
        before = self.champion
        # One reference: a request sees the old model or the new one, never a mixture.
        self.champion = champion
        self._told.clear()
        SWAPS.labels(self._name).inc()
        INFO.clear()
        INFO.labels(self._name, champion.version).set(1)
        log.info(
            "serving", model=self._name, version=champion.version, run_id=champion.run_id,
            before=before.version if before is not None else None,
        )  # fmt: skip

    def _tidy(self) -> None:
        """Keep the files of what is loaded and of the newest, which may be loaded next."""
        loaded = {each.version for each in (self.champion, self.challenger) if each is not None}
        self._cache.forget_all_but({*loaded, *sorted(self._versions, key=int, reverse=True)[:_RECENT]})

    def _refuse(self, version: str, reason: str, message: str) -> None:
        # The alias is looked at every few seconds; what is wrong with it is told once.
        if (version, reason) not in self._told:
            self._told.add((version, reason))
            REFUSED.labels(self._name, reason).inc()
            log.error("version not served", model=self._name, version=version, reason=reason, message=message)


def replay(model: Loaded, raw: bytes) -> None:
    """Ask a model what it was asked in training, and compare.

    Args:
        model: the model.
        raw: ``{"instances": [...], "scores": [[...]]}`` as JSON.

    Raises:
        ScoringError: it answers otherwise, or cannot be asked.
    """
    try:
        example = orjson.loads(raw)
        expected = np.array(example["scores"], dtype=np.float64)
        found = model.model.score_rows(model.form.checked(example["instances"]))
    except (ValueError, KeyError, TypeError, Problem) as error:
        raise ScoringError(f"its example cannot be replayed: {type(error).__name__}: {error}") from error
    if found.shape != expected.shape:
        raise ScoringError(f"its example has scores of shape {expected.shape}, here they are of {found.shape}")
    furthest = float(np.abs(found - expected).max(initial=0.0)) / max(float(np.abs(expected).max(initial=0.0)), 1.0)
    if not furthest <= _TOLERANCE:
        raise ScoringError(f"it does not answer its example as in training: scores differ by up to {furthest:.2g}")
