"""One pipeline's decisions: signed records in the registry's tags, and the row that says which of them is in force."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from levada import evidence
from levada.config import read_secret, required
from levada.evidence import (
    ALIAS,
    GATE_TAG,
    ROLLBACK_SIGNATURE_TAG,
    ROLLBACK_TAG,
    SIGNATURE_TAG,
    EvidenceError,
    Record,
)
from levada.registry import tracking
from levada.registry.errors import TrainingError
from levada.registry.generation import Generations, State

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from levada.config import Settings


@dataclass
class Book:
    """Reads and writes the decisions of one pipeline."""

    client: MlflowClient
    key: bytes
    name: str
    """The pipeline."""
    generations: Generations

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, name: str) -> Iterator[Book]:
        """Connect to registry and database.

        Raises:
            ConfigError: a setting is missing.
            TrainingError: the database cannot be reached.
        """
        key = read_secret(required(settings.gate_key_file, "LEVADA_GATE_KEY_FILE")).encode()
        client = tracking.connect(settings)
        generations = Generations.connect(settings)
        try:
            yield cls(client, key, name, generations)
        finally:
            generations.close()

    def versions(self) -> dict[str, Any]:
        """Every version of the model, by its number."""
        return {str(version.version): version for version in tracking.versions(self.client, self.name)}

    def version_of_run(self, run: str) -> Any:
        """The version that a run registered.

        Raises:
            TrainingError: it registered none.
        """
        found = tracking.version_of_run(self.client, self.name, tracking.check_run(run))
        if found is None:
            raise TrainingError(f"run {run} registered no version of {self.name}: run levada train --run {run} first")
        return found

    def latest(self) -> Record | None:
        """The newest decision whose signature is ours."""
        return evidence.newest(
            self.key, self.name, ((number, version.tags) for number, version in self.versions().items())
        )

    def record_of(self, version: Any) -> Record | None:
        """What the gate decided on a version; None if it did not yet."""
        try:
            return evidence.verify(self.key, self.name, str(version.version), version.tags)
        except EvidenceError:
            return None

    def champion(self, number: str | None) -> Any | None:
        """The version that serves.

        Raises:
            TrainingError: it was deleted from the registry.
        """
        if number is None:
            return None
        versions = self.versions()
        if number not in versions:
            raise TrainingError(
                f"champion {number} of {self.name} was deleted from the registry: restore it, or run levada rollback"
            )
        return versions[number]

    def earlier(self) -> str:
        """What tells of a champion, proven or not; "" if nothing does.

        Any hand could have written it, so nobody serves for it. But whoever could delete the proof of a champion must
        not get a version past the comparison with it.
        """
        if history := self.generations.history(self.name):
            number = f"{len(history)} decision{'s' if len(history) > 1 else ''}"
            return f"registry.history has {number}, the last for version {history[-1].champion}"
        versions = self.versions()
        if versions and (named := self.client.get_registered_model(self.name).aliases.get(ALIAS)) is not None:
            return f"the alias {ALIAS} names version {named}"
        for number, version in versions.items():
            told = evidence.claimed([version.tags])
            if told is not None and told.champion is not None:
                return f"the record of version {number} names champion {told.champion}"
        return ""

    def history(self) -> tuple[list[Record], int]:
        """The signed decisions about the champion, oldest first, and how many rows more there are that are not ours."""
        rows = self.generations.history(self.name)
        signed = [(row, Record.from_json(str(row.record))) for row in rows if self._signed(row)]
        # A signed row that was copied says another generation than it is under.
        records = [record for row, record in signed if record.generation == row.generation]
        return records, len(rows) - len(records)

    def settle(self) -> State:
        """The decision in force, after tags and alias were made to say what it says.

        Raises:
            TrainingError: the row is not what a gate wrote.
        """
        latest = self.latest()
        state = self.generations.state(self.name, latest)
        self._check(state, latest)
        versions = self.versions()
        if state.record is not None and state.signature is not None:
            record = Record.from_json(state.record)
            about = {record.version}
            if record.outcome == "rolled back":
                about.add(str(record.champion))
            names = (
                (ROLLBACK_TAG, ROLLBACK_SIGNATURE_TAG) if record.outcome == "rolled back" else (GATE_TAG, SIGNATURE_TAG)
            )
            for number in about & versions.keys():
                if [versions[number].tags.get(name) for name in names] != [state.record, state.signature]:
                    self._tag(number, names, state.record, state.signature)
        if state.champion in versions:
            self.client.set_registered_model_alias(self.name, ALIAS, state.champion)
        return state

    def _check(self, state: State, latest: Record | None) -> None:
        """Whoever trains can reach the database, so a row counts only as far as it is signed."""
        if state.record is not None:
            good = self._signed(state)
            if good:
                signed = Record.from_json(state.record)
                good = (signed.generation, signed.champion) == (state.generation, state.champion)
        else:  # as it began: what the registry's records say, or nothing; the history may have gone further
            good = state.champion == (latest.champion if latest is not None else None)
        if not good:
            raise TrainingError(
                f"the row of {self.name} in registry.generation was written by another hand, or before the gate's key "
                "was changed: delete it, and the gate begins anew at the newest signed record, or asks a person where "
                "there is none; nothing was decided and what serves stays"
            )

    def _signed(self, state: State) -> bool:
        mine = evidence.sign(self.key, self.name, str(state.record))
        return hmac.compare_digest(mine.encode(), str(state.signature).encode())

    def take(self, record: Record) -> bool:
        """Let a decision be in force; False if another one came first and nothing was changed."""
        text = record.to_json()
        signature = evidence.sign(self.key, self.name, text)
        if record.outcome in ("promoted", "rolled back"):
            return self.generations.move(self.name, record, signature)
        self._tag(record.version, (GATE_TAG, SIGNATURE_TAG), text, signature)
        return True

    def later(self) -> str:
        """Now, or just after the latest decision where this machine's clock is behind the one that made it."""
        now, latest = datetime.now(UTC), self.latest()
        if latest is not None:
            now = max(now, datetime.fromisoformat(latest.decided_at) + timedelta(microseconds=1))
        return now.isoformat(timespec="microseconds")

    def _tag(self, number: str, names: tuple[str, str], text: str, signature: str) -> None:
        # A record without its signature counts for nothing, so the order does not matter to readers.
        self.client.set_model_version_tag(self.name, number, names[0], text)
        self.client.set_model_version_tag(self.name, number, names[1], signature)
