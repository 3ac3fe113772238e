"""Screens: which events are suspicious, and why. They are set aside for review, not refused."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from prometheus_client import Counter

from levada import rules
from levada.pipeline import Pipeline, Rate, seconds

MAX_VALUES: Final = 65_536
"""Values that one rate counts apart; the one that was seen longest ago is forgotten first."""

SCREENED: Final = Counter("levada_collector_screened", "Events set aside for review.", ["pipeline", "screen"])
FORGOTTEN: Final = Counter(
    "levada_collector_screen_forgotten", "Values that a rate forgot within its time.", ["pipeline", "screen"]
)


@dataclass(frozen=True)
class Suspicion:
    """Why an event is set aside."""

    screens: tuple[str, ...]
    reasons: tuple[str, ...]
    """One a screen, made of the declaration alone: no value of the event is in them."""


class _RateOf:
    """How often each value came in the last while.

    Counted are two spans of that length, this one and the one before; what the moving window still covers of the
    earlier one is taken for its share. So a value costs the same however often it comes.
    """

    def __init__(self, rate: Rate, forgot: Callable[[], None], clock: Callable[[], float]) -> None:
        self._span = seconds(rate.per)
        self._limit = rate.events
        self._forgot = forgot
        self._clock = clock
        self._key = os.urandom(16)
        self._counts: OrderedDict[bytes, tuple[int, int, int]] = OrderedDict()  # value → (span, in it, in the last)

    def exceeded(self, value: Any) -> bool:
        """Count one more, and tell whether that is too many."""
        now = self._clock() / self._span
        span = int(now)
        digest = blake2b(repr(value).encode(errors="replace"), digest_size=16, key=self._key).digest()
        seen, count, before = self._counts.pop(digest, (span, 0, 0))
        if seen < span:
            before, count = (count if seen == span - 1 else 0), 0
        count += 1
        self._counts[digest] = (span, count, before)
        if len(self._counts) > MAX_VALUES:
            _, (last, _, _) = self._counts.popitem(last=False)
            if last >= span - 1:
                self._forgot()
        return count + before * (1 - (now - span)) > self._limit


class Screens:
    """The screens of one pipeline, with what they have counted."""

    def __init__(self, pipeline: Pipeline, clock: Callable[[], float] = time.monotonic) -> None:
        self._tests: list[tuple[str, str, Callable[[Mapping[str, Any]], bool]]] = []
        for name, screen in pipeline.screen.items():
            if screen.rate is not None:
                forgot = FORGOTTEN.labels(pipeline.name, name).inc
                reason = f"more than {screen.rate.events} events of one {screen.rate.field} in {screen.rate.per}"
                self._tests.append((name, reason, _rate(screen.rate, _RateOf(screen.rate, forgot, clock))))
            if screen.rule is not None:
                rule = rules.parse(screen.rule, pipeline.types)
                # The text of a rule on a sensitive field may hold the very value that it finds.
                text = "its rule" if rule.columns & pipeline.sensitive else screen.rule
                self._tests.append((name, f"{text} is true", rule.passes))
        self._counters = {name: SCREENED.labels(pipeline.name, name) for name in pipeline.screen}

    def judge(self, record: Mapping[str, Any]) -> Suspicion | None:
        """What is suspicious of a checked event; each rate counts it, whatever the other screens say."""
        found = [(name, reason) for name, reason, test in self._tests if test(record)]
        if not found:
            return None
        for name, _ in found:
            self._counters[name].inc()
        names, reasons = zip(*found, strict=True)
        return Suspicion(names, reasons)


def _rate(rate: Rate, counts: _RateOf) -> Callable[[Mapping[str, Any]], bool]:
    def test(record: Mapping[str, Any]) -> bool:
        value = record.get(rate.field)
        return value is not None and counts.exceeded(value)

    return test
