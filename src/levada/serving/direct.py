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
Name = Callable[[dict[bytes, bytes], int], bytes]
"""The event id of a request with these headers and so many rows, or what the ids of the rows are made from; nothing for
one that is not kept. Raises :class:`Problem` for an id that cannot be one."""
Asked = Sequence[tuple[bytes, int]]
"""The name of each request, and how many of the rows are its own."""
Mirror = Callable[[Loaded, Sequence[Row], Outcomes, Scores, Asked, int], None]
"""Is shown what was answered, and how many bytes asked for it: about what it takes to remember that."""

log = structlog.get_logger()


class _Waiting:
    """A request that is checked and waits for the next run."""

    __slots__ = ("begin", "exchange", "model", "name", "rows", "size", "write")

    def __init__(
        self, exchange: Exchange, model: Loaded, rows: Sequence[Row], write: Write, name: bytes, size: int
    ) -> None:
        self.exchange, self.model, self.rows, self.write, self.name = exchange, model, rows, write, name
        self.size = size
        self.begin = time.perf_counter()


class Direct:
    """Takes requests that nothing speaks against."""

    def __init__(
        self,
        champion: Callable[[], Loaded | None],
        admit: Callable[[Sequence[tuple[bytes, bytes]]], dict[bytes, bytes]],
        reads: Mapping[bytes, Read],
        counts: Counts,
        name: Name,
        mirror: Mirror,
    ) -> None:
        """Answer by the model that ``champion`` gives.

        Args:
            champion: the model that answers now.
            admit: the headers by name; raises :class:`Problem` for a request that is not to be answered.
            reads: how the body of each target is read.
            counts: the metrics.
            name: names requests.
            mirror: is shown rows and answers.
        """
        self._champion = champion
        self._admit = admit
        self._reads = reads
        self._counts = counts
        self._name = name
        self._mirror = mirror
        self._waiting: list[_Waiting] = []

    def take(self, exchange: Exchange) -> bool:
        """Whether the request is taken; what is wrong with another is told by ASGI."""
        read, model, body = self._reads.get(exchange.target), self._champion(), exchange.body
        if read is None or model is None or len(body) > INLINE_BYTES:
            return False
        try:
            headers = self._admit(exchange.headers)
            rows, write = read(model, body)
            name = self._name(headers, len(rows))
        except (Problem, *NOT_PLAIN):
            return False
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(_Waiting(exchange, model, rows, write, name, len(body)))
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
        begin, size, now = 0, 0, time.perf_counter()
        for each in asked:
            end = begin + len(each.rows)
            lines = head + named(each.name) if each.name else head
            each.exchange.respond(200, lines, each.write(model, outcomes[begin:end], scores[begin:end]))
            self._counts.seconds.observe(now - each.begin)
            begin = end
            size += each.size
        self._counts.answered(200, len(asked))
        self._counts.scored(len(rows))
        self._mirror(model, rows, outcomes, scores, [(each.name, len(each.rows)) for each in asked], size)

    def _refuse(self, asked: _Waiting, error: Exception) -> None:
        problem = error if isinstance(error, Problem) else failed(error)
        self._counts.answered(problem.status)
        asked.exchange.respond(problem.status, _PROBLEM_LINE + asked.model.lines, problem.body())


def named(name: bytes) -> bytes:
    """The line of an answer's head that tells the id under which a prediction is kept."""
    return b"levada-event-id: %b\r\n" % name


def failed(error: Exception) -> Problem:
    """500, and where it happened in the log."""
    log.error("a prediction failed", exc_info=error)
    return Problem(500, "the prediction failed; the log says why")
