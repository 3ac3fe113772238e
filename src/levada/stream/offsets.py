"""How far a table has read its topic: kept in the table itself, in the summary of each snapshot.

Rows and offsets are committed by one compare-and-set of the table's metadata, so they can never disagree. The map
names the topic by its *id*: a topic that was deleted and created again starts at offset 0 with other events.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

SUMMARY_KEY: Final = "levada.offsets"


@dataclass(frozen=True)
class Entry:
    """One partition: the next offset to read, and the epoch of the sink that owns it."""

    next: int
    epoch: int


Partitions = Mapping[int, Entry]
"""Partition number → entry."""


@dataclass(frozen=True)
class Offsets:
    """Topic id → partitions. More than one topic id when a topic was replaced."""

    topics: Mapping[str, Partitions]

    def of(self, topic_id: str) -> Partitions:
        """The partitions of one topic; empty if the table has read nothing of it."""
        return self.topics.get(topic_id, {})

    def having(self, topic_id: str, partitions: Partitions) -> Offsets:
        """A copy with these entries of one topic replaced; all others stay."""
        return Offsets({**self.topics, topic_id: {**self.of(topic_id), **partitions}})

    def dump(self) -> str:
        """Text for a snapshot summary."""
        return json.dumps(
            {
                topic_id: {
                    str(partition): {"next": entry.next, "epoch": entry.epoch} for partition, entry in own.items()
                }
                for topic_id, own in self.topics.items()
            },
            separators=(",", ":"),
            sort_keys=True,
        )

    @classmethod
    def parse(cls, text: str) -> Offsets:
        """The reverse of :meth:`dump`."""
        return cls(
            {
                topic_id: {int(partition): Entry(entry["next"], entry["epoch"]) for partition, entry in own.items()}
                for topic_id, own in json.loads(text).items()
            }
        )


def newest_with_offsets(table: Table) -> Snapshot | None:
    """The newest snapshot on the current branch that holds our key; maintenance by others may lie on top of it."""
    snapshot = table.current_snapshot()
    while snapshot is not None:
        if snapshot.summary is not None and SUMMARY_KEY in snapshot.summary.additional_properties:
            return snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else table.snapshot_by_id(parent)
    return None


def read(table: Table) -> Offsets | None:
    """The offsets that the table has reached, or None where no snapshot tells."""
    snapshot = newest_with_offsets(table)
    if snapshot is None or snapshot.summary is None:
        return None
    return Offsets.parse(snapshot.summary.additional_properties[SUMMARY_KEY])
