"""The short way of a prediction: what one tick of the event loop received is scored in one run of the model.

There is no timer: a request that is alone is answered as fast as it would be otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final

import structlog

from levada.http.connection import Exchange
from levada.http.problem import MEDIA_TYPE, Problem
from levada.serving.forms import NOT_PLAIN, Row
from levada.serving.loaded import Loaded, Outcomes, Scores, Write
from levada.serving.metrics import Counts

INLINE_BYTES: Final = 65_536
"""Larger bodies are answered on a thread, so that they do not keep small ones waiting."""
_JSON_LINE: Final = b"content-type: application/json\r\n"
_PROBLEM_LINE: Final = b"content-type: " + MEDIA_TYPE + b"\r\n"

Read = Callable[[Loaded, bytes], tuple[Sequence[Row], Write]]
"""Rows of a body, and how to answer; raises :class:`Problem` or one of NOT_PLAIN."""
Mirror = Callable[[Loaded, Sequence[Row], Outcomes, Scores], None]
"""Is shown what was answered."""

log = structlog.get_logger()


class _Waiting:
    """A request that is checked and waits for the next run."""

    __slots__ = ("begin", "exchange", "model", "rows", "write")

    def __init__(self, exchange: Exchange, model: Loaded, rows: Sequence[Row], write: Write) -> None:
        self.exchange, self.model, self.rows, self.write = exchange, model, rows, write
        self.begin = time.perf_counter()


class Direct:
    """Takes requests that nothing speaks against."""

    def __init__(
        self,
        champion: Callable[[], Loaded | None],
        admit: Callable[[Sequence[tuple[bytes, bytes]]], object],
        reads: Mapping[bytes, Read],
        counts: Counts,
        mirror: Mirror,
    ) -> None:
        """Answer by the model that ``champion`` gives.

        Args:
            champion: the model that answers now.
            admit: raises :class:`Problem` for headers of a request that is not to be answered.
            reads: how the body of each target is read.
            counts: the metrics.
            mirror: is shown rows and answers.
        """
        self._champion = champion
        self._admit = admit
        self._reads = reads
        self._counts = counts
        self._mirror = mirror
        self._waiting: list[_Waiting] = []

    def take(self, exchange: Exchange) -> bool:
        """Whether the request is taken; what is wrong with another is told by ASGI."""
        read, model, body = self._reads.get(exchange.target), self._champion(), exchange.body
        if read is None or model is None or len(body) > INLINE_BYTES:
            return False
        try:
            self._admit(exchange.headers)
            rows, write = read(model, body)
        except (Problem, *NOT_PLAIN):
            return False
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(_Waiting(exchange, model, rows, write))
        return True

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        # A swap may have come between two of them.
        for model, asked in groupby(waiting, lambda each: each.model):
            self._answer(model, list(asked))

    def _answer(self, model: Loaded, asked: list[_Waiting]) -> None:
        rows = asked[0].rows if len(asked) == 1 else [row for each in asked for row in each.rows]
        try:
            outcomes, scores = model.score(rows)
        except Exception as error:
            if len(asked) > 1:  # it is one of them; the others shall not suffer for it
                for each in asked:
                    self._answer(model, [each])
            else:
                self._refuse(asked[0], error)
            return
        head = _JSON_LINE + model.lines
        begin, now = 0, time.perf_counter()
        for each in asked:
            end = begin + len(each.rows)
            each.exchange.respond(200, head, each.write(model, outcomes[begin:end], scores[begin:end]))
            self._counts.seconds.observe(now - each.begin)
            begin = end
        self._counts.answered(200, len(asked))
        self._counts.scored(len(rows))
        self._mirror(model, rows, outcomes, scores)

    def _refuse(self, asked: _Waiting, error: Exception) -> None:
        problem = error if isinstance(error, Problem) else failed(error)
        self._counts.answered(problem.status)
        asked.exchange.respond(problem.status, _PROBLEM_LINE + asked.model.lines, problem.body())


def failed(error: Exception) -> Problem:
    """500, and where it happened in the log."""
    log.error("a prediction failed", exc_info=error)
    return Problem(500, "the prediction failed; the log says why")
