"""The event ids of the last hours, so that an event that was sent twice becomes one row.

A window may hold millions of ids, so it keeps 16 bytes of each: a digest, in sorted runs, some for each slot of time.
Before the runs stands a filter of bits, which almost every new id passes without touching them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SLOTS: Final = 24
"""The window forgets in steps of this part of its length."""
_BITS_PER_ID: Final = 16
_SMALLEST_FILTER: Final = 16  # 2^16 bits
_SALT: Final = b"\0"

Numbers = NDArray[np.uint64]


def digests(ids: Sequence[bytes]) -> tuple[Numbers, Numbers]:
    """128 bits of each id, in two numbers.

    Python's own hash of bytes is SipHash with a key that each process draws at its start: nobody outside can make two
    ids meet, and nothing that is kept longer than the process may use it.
    """
    first = np.fromiter(map(hash, ids), np.int64, len(ids)).view(np.uint64)
    second = np.fromiter(map(hash, map(_SALT.__add__, ids)), np.int64, len(ids)).view(np.uint64)
    return first, second


@dataclass(frozen=True)
class _Run:
    """Digests in order of their first number."""

    first: Numbers
    second: Numbers

    def __len__(self) -> int:
        return len(self.first)

    def holds(self, first: Numbers, second: Numbers) -> NDArray[np.bool_]:
        # Two ids with one first half stand side by side and only one would be found: at ten million ids that has a
        # chance of one in a hundred thousand, and what comes of it is a repeated row.
        places = np.minimum(np.searchsorted(self.first, first), len(self.first) - 1)
        found: NDArray[np.bool_] = (self.first[places] == first) & (self.second[places] == second)
        return found


def _joined(runs: Sequence[_Run]) -> _Run:
    if len(runs) == 1:
        return runs[0]
    first = np.concatenate([run.first for run in runs])
    order = np.argsort(first, kind="stable")
    return _Run(first[order], np.concatenate([run.second for run in runs])[order])


class _Filter:
    """A set of digests that answers *perhaps* or *no*: two bits an id, in a field of at least sixteen."""

    def __init__(self, ids: int) -> None:
        self._power = max(_SMALLEST_FILTER, (2 * ids * _BITS_PER_ID - 1).bit_length())
        self._bits = np.zeros(1 << (self._power - 3), np.uint8)
        self.room = (1 << self._power) // _BITS_PER_ID

    def add(self, run: _Run) -> None:
        for numbers in (run.first, run.second):
            byte, bit = self._place(numbers)
            np.bitwise_or.at(self._bits, byte, bit)

    def perhaps(self, first: Numbers, second: Numbers) -> NDArray[np.bool_]:
        answer = np.ones(len(first), np.bool_)
        for numbers in (first, second):
            byte, bit = self._place(numbers)
            answer &= (self._bits[byte] & bit) != 0
        return answer

    def _place(self, numbers: Numbers) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        place = numbers >> np.uint64(64 - self._power)
        byte = (place >> np.uint64(3)).view(np.int64)
        return byte, np.left_shift(np.uint8(1), (place & np.uint64(7)).astype(np.uint8))


class Window:
    """Event ids by the time at which the sink took them in, for at least ``length`` seconds.

    At most about ``most`` ids are kept: beyond it the oldest slots are forgotten before their time, so that memory is
    bounded whatever comes in. :attr:`shortened` tells.
    """

    def __init__(self, length: float, most: int = 10_000_000) -> None:
        self._seconds = length
        self._slot_seconds = length / _SLOTS
        self._most = most
        self._slots: dict[int, list[_Run]] = {}
        self._pending: list[_Run] = []
        self._filter = _Filter(0)
        self._filtered = 0
        self.shortened = False
        """Whether a slot was forgotten before its time."""

    def __len__(self) -> int:
        return sum(len(run) for runs in self._slots.values() for run in runs)

    @property
    def full(self) -> bool:
        """Whether more ids would push out others."""
        return len(self) >= self._most

    def slot(self, timestamp: float) -> tuple[float, float]:
        """Begin and end of the slot of time that this instant (seconds since 1970) lies in."""
        number = self._number_at(timestamp)
        return number * self._slot_seconds, (number + 1) * self._slot_seconds

    def fill(self, batches: Iterable[tuple[Sequence[bytes], NDArray[np.int64]]]) -> None:
        """Add what a table holds: batches of event ids and the times, in µs since 1970, at which they were taken in."""
        found: dict[int, list[_Run]] = {}
        for ids, times in batches:
            first, second = digests(ids)
            numbers = (times / 1e6 // self._slot_seconds).astype(np.int64)
            for number in np.unique(numbers).tolist():
                mine = numbers == number
                found.setdefault(number, []).append(_sorted(first[mine], second[mine]))
        for number, runs in found.items():
            self._slots[number] = [_joined([*self._slots.get(number, []), *runs])]
        self._refilter()

    def new(self, ids: Sequence[bytes]) -> NDArray[np.bool_]:
        """For each id whether it is new. New ids are remembered, until :meth:`commit` for the time being."""
        first, second = digests(ids)
        answers = np.ones(len(ids), np.bool_)
        order = np.argsort(first, kind="stable")
        a, b = first[order], second[order]
        answers[order[1:][(a[1:] == a[:-1]) & (b[1:] == b[:-1])]] = False  # again in this very batch
        asked = np.flatnonzero(answers & self._filter.perhaps(first, second))
        for run in self._runs():
            if not len(asked):
                break
            known = run.holds(first[asked], second[asked])
            answers[asked[known]] = False
            asked = asked[~known]
        fresh = order[answers[order]]
        if len(fresh):
            run = _Run(first[fresh], second[fresh])
            self._pending.append(run)
            self._remember(run)
        return answers

    def commit(self, now: float) -> None:
        """The rows of the ids that are remembered for the time being are in the table; forget what is too old.

        Args:
            now: seconds since 1970, by a clock that nobody sets: ids would be forgotten early.
        """
        if self._pending:
            runs = self._slots.setdefault(self._number_at(now), [])
            runs.append(_joined(self._pending))
            self._pending = []
            while len(runs) > 1 and len(runs[-2]) <= 2 * len(runs[-1]):
                runs[-2:] = [_joined(runs[-2:])]
        oldest = self._number_at(now - self._seconds)
        gone = [number for number in self._slots if number < oldest]
        for number in gone:
            del self._slots[number]
        while len(self._slots) > 1 and len(self) > self._most:
            gone.append(min(self._slots))
            del self._slots[gone[-1]]
            self.shortened = True
        if gone:
            self._refilter()

    def _runs(self) -> list[_Run]:
        return [*self._pending, *(run for number in sorted(self._slots, reverse=True) for run in self._slots[number])]

    def _remember(self, run: _Run) -> None:
        self._filtered += len(run)
        if self._filtered > self._filter.room:
            self._refilter()
        else:
            self._filter.add(run)

    def _refilter(self) -> None:
        runs = self._runs()
        self._filtered = sum(map(len, runs))
        self._filter = _Filter(self._filtered)
        for run in runs:
            self._filter.add(run)

    def _number_at(self, timestamp: float) -> int:
        return int(timestamp // self._slot_seconds)


def _sorted(first: Numbers, second: Numbers) -> _Run:
    order = np.argsort(first, kind="stable")
    return _Run(first[order], second[order])
