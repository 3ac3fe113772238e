"""The event ids of the last hours, so that an event that was sent twice becomes one row.

A window may hold millions of ids, so it keeps 16 bytes of each: a digest, in sorted runs. The runs lie in parts, oldest
first; a part ends with its share of the window's time or of its ids, whichever comes first, and what is forgotten are
whole parts. So the number of ids is bounded at any rate. Before the runs stands a filter of bits, which almost every
new id passes without touching them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PARTS: Final = 24
"""The window forgets in steps of this part of its time or of its ids."""
_MOMENTS: Final = 1 << 20
_MICRO: Final = 1_000_000
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


class Tally:
    """How many ids a table took in when: counted before any id is read, it tells which of them fit into a window.

    Its memory is 8 MiB whatever it counts: time is divided into a million moments.
    """

    def __init__(self, since: int, until: int) -> None:
        """Count from ``since`` on and before ``until``, in µs since 1970."""
        self.until = until
        self._since = since
        self._step = max(1, -(-(until - since) // _MOMENTS))
        self._counts = np.zeros(-(-(until - since) // self._step), np.int64)

    def __len__(self) -> int:
        return int(self._counts.sum())

    def add(self, times: NDArray[np.int64]) -> None:
        """Count ids that were taken in at these times, in µs since 1970."""
        moments, counts = np.unique((times - self._since) // self._step, return_counts=True)
        self._counts[moments] += counts

    def after(self, time: int) -> int:
        """How many were taken in after the moment that this time, in µs since 1970, lies in."""
        return int(self._counts[(time - self._since) // self._step + 1 :].sum())

    def spans(self, most: int, share: int, length: int) -> list[tuple[int, int]]:
        """The newest ``most`` ids as spans of time: begin and end in µs since 1970, oldest first, none of them empty.

        No span has more than ``share`` ids and those of a moment, or goes over a multiple of ``length`` µs. Where not
        all ids fit, those of one moment are taken or left together.
        """
        later = np.cumsum(self._counts[::-1])[::-1]  # ids of a moment and of all after it
        first = int(np.searchsorted(-later, -most))
        kept = self._counts[first:]
        number = (np.cumsum(kept) - kept) // share + np.arange(first, len(self._counts)) * self._step // length
        edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(kept)]
        return [
            (self._since + (first + begin) * self._step, self._since + (first + end) * self._step)
            for begin, end in itertools.pairwise(edges)
            if kept[begin:end].any()
        ]


@dataclass
class _Part:
    """Ids that were taken in one after the other."""

    begin: float
    newest: float
    runs: list[_Run] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def add(self, run: _Run) -> None:
        self.runs.append(run)
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            self.runs[-2:] = [_joined(self.runs[-2:])]


class Window:
    """Event ids by the time at which the sink took them in, for at least ``length`` seconds.

    At most ``most`` ids are kept, besides those that are not committed yet: beyond it the oldest are forgotten before
    their time, a twenty-fourth of ``most`` at once, so that memory is bounded whatever comes in. Only a single batch
    that is larger is kept whole. :attr:`shortened` and :meth:`reach` tell.
    """

    def __init__(self, length: float, most: int = 10_000_000) -> None:
        self._seconds = length
        self._part_seconds = length / _PARTS
        self._most = most
        self._share = max(1, most // _PARTS)
        self._parts: list[_Part] = []
        self._pending: list[_Run] = []
        self._filter = _Filter(0)
        self._filtered = 0
        self._forgotten = -math.inf

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def shortened(self) -> bool:
        """Whether ids were forgotten, or not read, before their time."""
        return self._forgotten > -math.inf

    def reach(self, now: float) -> float:
        """How many seconds back from ``now`` (seconds since 1970) every id is known; its length unless shortened."""
        return max(0.0, min(self._seconds, now - self._forgotten))

    def spans(self, tally: Tally) -> list[tuple[int, int]]:
        """What to :meth:`fill` it with: the newest ids of a table that fit, as spans of time, oldest first.

        Begin and end of each are in µs since 1970. The window counts all before the first of them as forgotten, if
        there is something before.
        """
        found = tally.spans(self._most, self._share, max(1, int(self._part_seconds * _MICRO)))
        begin = found[0][0] if found else tally.until
        if tally.after(begin - 1) < len(tally):
            self._forgotten = begin / _MICRO
        return found

    def fill(self, batches: Iterable[Sequence[bytes]], newest: float) -> None:
        """Add what a table took in until ``newest`` (seconds since 1970), and after all that was added before."""
        runs = [_sorted(*digests(ids)) for ids in batches]
        if runs:
            part = _Part(-math.inf, newest, [_joined(runs)])  # nothing is added to it
            self._parts.append(part)
            self._remember(part.runs[0])

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
        for run in self._pending:
            part = self._parts[-1] if self._parts else None
            if part is None or now - part.begin >= self._part_seconds or len(part) + len(run) > self._share:
                part = _Part(now, now)
                self._parts.append(part)
            part.add(run)
            part.newest = now
        self._pending = []
        # What is forgotten stays in the filter, which is no more than slower: it is made anew when it is full.
        while self._parts and self._parts[0].newest < now - self._seconds:
            self._parts.pop(0)
        while len(self._parts) > 1 and len(self) > self._most:
            self._forgotten = self._parts.pop(0).newest

    def _runs(self) -> list[_Run]:
        return [*self._pending, *(run for part in reversed(self._parts) for run in part.runs)]

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


def _sorted(first: Numbers, second: Numbers) -> _Run:
    order = np.argsort(first, kind="stable")
    return _Run(first[order], second[order])
