"""The event ids of the last hours, so that an event that was sent twice becomes one row.

A window may hold millions of ids, so it keeps 16 bytes of each: a digest, in sorted arrays, one for each slot of time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SLOTS: Final = 24
"""The window forgets in steps of this part of its length."""


@dataclass(frozen=True)
class _Slot:
    """Digests as two numbers each, in order of the first."""

    first: NDArray[np.uint64]
    second: NDArray[np.uint64]

    def holds(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        # Two ids with one first half stand side by side and only one would be found: at ten million ids that has a
        # chance of one in a hundred thousand, and what comes of it is a repeated row.
        places = np.minimum(np.searchsorted(self.first, digests[:, 0]), len(self.first) - 1)
        found: NDArray[np.bool_] = (self.first[places] == digests[:, 0]) & (self.second[places] == digests[:, 1])
        return found

    def with_more(self, digests: NDArray[np.uint64]) -> _Slot:
        digests = digests[np.argsort(digests[:, 0])]
        places = np.searchsorted(self.first, digests[:, 0])
        return _Slot(np.insert(self.first, places, digests[:, 0]), np.insert(self.second, places, digests[:, 1]))


_EMPTY: Final = _Slot(np.empty(0, np.uint64), np.empty(0, np.uint64))


class Window:
    """Event ids by the time at which the sink took them in, for at least ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._slot_seconds = seconds / _SLOTS
        self._slots: dict[int, _Slot] = {}
        self._pending: set[bytes] = set()

    def __len__(self) -> int:
        return sum(len(slot.first) for slot in self._slots.values())

    def fill(self, batches: Iterable[tuple[Sequence[str], Sequence[datetime]]]) -> None:
        """Start from what a table holds: batches of event ids and the times at which they were taken in."""
        digests: dict[int, bytearray] = {}
        for ids, times in batches:
            for event_id, time in zip(ids, times, strict=True):
                digests.setdefault(self._number(time), bytearray()).extend(_digest(event_id))
        self._slots = {number: _EMPTY.with_more(_numbers([own])) for number, own in digests.items()}
        self._pending = set()

    def new(self, ids: Sequence[str]) -> list[bool]:
        """For each id whether it is new. New ids are remembered, until :meth:`commit` for the time being."""
        digests = [_digest(event_id) for event_id in ids]
        numbers = _numbers(digests)
        known = np.zeros(len(digests), np.bool_)
        for slot in self._slots.values():
            known |= slot.holds(numbers)
        answers = []
        for digest, is_known in zip(digests, known.tolist(), strict=True):
            is_new = not is_known and digest not in self._pending
            answers.append(is_new)
            if is_new:
                self._pending.add(digest)
        return answers

    def commit(self, now: datetime) -> None:
        """The rows of the ids that are remembered for the time being are in the table; forget what is too old."""
        if self._pending:
            number = self._number(now)
            self._slots[number] = self._slots.get(number, _EMPTY).with_more(_numbers(list(self._pending)))
            self._pending = set()
        oldest = self._number_at(now.timestamp() - self._seconds)
        self._slots = {number: slot for number, slot in self._slots.items() if number >= oldest}

    def _number(self, time: datetime) -> int:
        return self._number_at(time.timestamp())

    def _number_at(self, timestamp: float) -> int:
        return int(timestamp // self._slot_seconds)


def _digest(event_id: str) -> bytes:
    return blake2b(event_id.encode(), digest_size=16).digest()


def _numbers(digests: Sequence[bytes | bytearray]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
