"""Many events in one request: the lines of NDJSON, or the objects of a JSON array, each with a receipt of its own."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import orjson

from levada.event import Violation
from levada.http.problem import Problem, unavailable
from levada.ingest.admission import Declared, Envelope, Event
from levada.ingest.producer import NotAcknowledged, Outcome, Receipt

_CHUNK: Final = 200
"""Lines that are checked and produced before others have their turn."""
_AHEAD: Final = 4
"""Chunks that may wait for their acknowledgements."""
_QUEUE_FULL_SECONDS: Final = 0.01

_SPACE: Final = rb"[ \t\r\n]*+"
# A declared event is flat, so an object ends at its first brace outside of a text. Possessive, for no input may make it
# try again, or remember where it could.
_OBJECT: Final = re.compile(rb'(\{(?:[^{}"]++|"(?:[^"\\]++|\\.)*+")*+\})' + _SPACE + rb"([,\]])" + _SPACE, re.DOTALL)
_BEGIN: Final = re.compile(_SPACE + rb"\[" + _SPACE)

_Sent = tuple[dict[str, Any], Envelope, asyncio.Future[Outcome]]

Line = tuple[int, bytes]
"""Number, from 1, and bytes of one event."""


def is_array(body: bytes) -> bool:
    """Whether a JSON body is an array, as far as its first byte tells."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def lines_of(body: bytes, limit: int) -> Iterator[Line]:
    """The lines of NDJSON; blank ones are counted and left out.

    Raises:
        Problem: 413, more than ``limit`` lines, blank ones too.
    """
    if body.count(b"\n") - body.endswith(b"\n") >= limit:
        raise _too_many(limit)
    return _lines(body)


def _lines(body: bytes) -> Iterator[Line]:
    start, number = 0, 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        number += 1
        if line := body[start:end].strip(b" \t\r"):
            yield number, line
        start = end + 1


def items_of(body: bytes, limit: int) -> list[Line]:
    """The objects of a JSON array, byte for byte.

    Raises:
        Problem: 400, it is no array of flat objects; 413, more than ``limit`` of them.
    """
    found = _BEGIN.match(body)
    items: list[Line] = []
    while found is not None:
        at = found.end()
        found = _OBJECT.match(body, at)
        if found is None:
            break
        items.append((len(items) + 1, found[1]))
        if len(items) > limit:
            raise _too_many(limit)
        if found[2] == b"]":
            if found.end() == len(body):
                return items
            break
    message = f"must be a JSON array of flat objects: item {len(items) + 1} is none, or the array does not end"
    raise Problem(400, "the body is not JSON", errors=[Violation("", "json", message)])


def _too_many(limit: int) -> Problem:
    return Problem(413, f"a batch may have {limit} lines")


class Batch:
    """One request's events on their way.

    Lines are produced in their order. After one that Kafka did not acknowledge, or that found no room, no later line is
    begun: the client sends them again, and those with one key keep their order.

    Args:
        declared: the pipeline.
        key: what the ids of the events are made from, ``<key>-<line>``.
        send: produces one message.
        problem: says why one was not acknowledged.
    """

    def __init__(
        self,
        declared: Declared,
        key: str,
        send: Callable[[Envelope], asyncio.Future[Outcome]],
        problem: Callable[[NotAcknowledged, Declared, str], Problem],
        *,
        max_line_bytes: int,
        patience: float,
    ) -> None:
        self._declared, self._key, self._send, self._problem = declared, key, send, problem
        self._max_line_bytes, self._patience = max_line_bytes, patience
        self._waiting: deque[tuple[list[dict[str, Any]], list[_Sent]]] = deque()
        self._halt: Problem | None = None
        self._settled: list[bytes] = []  # as JSON, which takes a tenth of the memory
        self.statuses: Counter[int] = Counter()
        """How many lines have which status."""
        self.retry_after = 0
        """Seconds after which lines that may be sent again should be; 0: there are none."""

    async def deliver(self, lines: Iterator[Line]) -> None:
        """Check and produce the lines, and wait until each has its receipt."""
        while chunk := list(islice(lines, _CHUNK)):
            events = [self._check(raw) for _, raw in chunk]
            no_room = await self._seal(events) if self._declared.seals and self._halt is None else None
            self._look_back()
            receipts: list[dict[str, Any]] = []
            sent: list[_Sent] = []
            self._waiting.append((receipts, sent))
            for (number, _), event in zip(chunk, events, strict=True):
                event_id = f"{self._key}-{number}"
                receipt: dict[str, Any] = {"line": number, "status": 202, "event_id": event_id}
                receipts.append(receipt)
                refusal = event if isinstance(event, Problem) else self._halt
                if refusal is None and isinstance(event, Event):
                    envelope = self._declared.envelope(event, event_id)
                    sent.append((receipt, envelope, await self._produce(envelope)))
                elif refusal is not None:
                    self._refuse(receipt, refusal)
            self._halt = self._halt or no_room
            if len(self._waiting) > _AHEAD:
                await self._take()
            await asyncio.sleep(0)
        while self._waiting:
            await self._take()

    def answer(self) -> bytes:
        """The body of the answer, made in one piece and once: it may have megabytes."""
        head = orjson.dumps({"batch": self._key, "acknowledged": self.statuses[202]})
        parts, self._settled = self._settled, []
        parts[0] = b'%b,"receipts":[%b' % (head[:-1], parts[0])
        parts[-1] += b"]}"
        return b",".join(parts)

    def _check(self, raw: bytes) -> Event | Problem:
        if len(raw) > self._max_line_bytes:
            return Problem(413, f"an event may have {self._max_line_bytes} bytes")
        try:
            return self._declared.check(raw)
        except Problem as problem:
            return problem

    async def _seal(self, events: list[Event | Problem]) -> Problem | None:
        """Seal what there is room for; from the first for which there is none, all are refused, and why."""
        sealing = [self._declared.seal(event) for event in events if isinstance(event, Event)]
        outcomes = iter(await asyncio.gather(*sealing, return_exceptions=True))
        refusal: Problem | None = None
        for place, event in enumerate(events):
            if isinstance(event, Problem):
                continue
            outcome = next(outcomes)
            if isinstance(outcome, Problem):
                refusal = refusal or outcome
            elif outcome is not None:
                raise outcome
            if refusal is not None:
                events[place] = refusal
        return refusal

    def _look_back(self) -> None:
        """Begin no more lines if one that was begun will not be acknowledged: its retry would come behind them."""
        if self._halt is None and any(_given_up(future) for _, sent in self._waiting for _, _, future in sent):
            self._halt = unavailable("an earlier line was not acknowledged", retry_after=1)

    async def _produce(self, envelope: Envelope) -> asyncio.Future[Outcome]:
        """Hand a message over, as soon as the producer has room for it."""
        deadline = time.monotonic() + self._patience
        while True:
            future = self._send(envelope)
            outcome = future.result() if future.done() else None
            full = isinstance(outcome, NotAcknowledged) and outcome.kind == "queue-full"
            if full and time.monotonic() < deadline and self._halt is None:
                await asyncio.sleep(_QUEUE_FULL_SECONDS)
                self._look_back()
                continue
            if _given_up(future) and self._halt is None:
                self._halt = unavailable("an earlier line was not acknowledged", retry_after=1)
            return future

    async def _take(self) -> None:
        """Wait for the acknowledgements of the chunk that was sent first."""
        receipts, sent = self._waiting.popleft()
        for receipt, envelope, future in sent:
            outcome = await future
            if isinstance(outcome, Receipt):
                receipt["partition"], receipt["offset"] = outcome.partition, outcome.offset
                if envelope.review:
                    receipt["review"] = True
                continue
            problem = self._problem(outcome, self._declared, receipt["event_id"])
            self._refuse(receipt, problem)
            if problem.status == 503:
                self._halt = unavailable("an earlier line was not acknowledged", retry_after=problem.retry_after or 1)
        self.statuses.update(receipt["status"] for receipt in receipts)
        self._settled.append(orjson.dumps(receipts)[1:-1])

    def _refuse(self, receipt: dict[str, Any], problem: Problem) -> None:
        receipt.update(problem.receipt())
        if problem.retry_after is not None:
            self.retry_after = max(self.retry_after, problem.retry_after)


def _given_up(future: asyncio.Future[Outcome]) -> bool:
    """Whether Kafka has not acknowledged it, and might the next time."""
    outcome = future.result() if future.done() else None
    return isinstance(outcome, NotAcknowledged) and outcome.kind != "too-large"
