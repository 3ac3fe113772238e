"""Delivering a batch of rows to the collector: until each row has an answer that will stay."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import orjson

from levada.errors import UserError

GROUP: Final = 1000
"""Rows that share an Idempotency-Key. A row's event id follows from the key and the row's line in the body, so a
request with a part of a group has blank lines in the place of the rest."""

_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT: Final = 30.0


class SendError(UserError):
    """Sending cannot go on; the message says how to."""


@dataclass(frozen=True)
class Refusal:
    """A row that the collector does not take."""

    row: int
    """Number of the row, from 1."""
    status: int
    detail: str
    errors: Sequence[Mapping[str, str]] = ()


@dataclass
class Outcome:
    """What became of a batch."""

    accepted: int = 0
    refused: list[Refusal] = field(default_factory=list)


class Collector:
    """The collector, as a client sees it.

    Args:
        url: its address now; asked again after a broken connection, since a port-forward may have moved.
        key: the API key now.
        pipeline: where to post.
        patience: seconds without any row being answered after which sending gives up.
        stop: ends all waiting, and nothing more is sent.
    """

    def __init__(
        self,
        url: Callable[[], str],
        key: Callable[[], str],
        pipeline: str,
        *,
        connections: int,
        patience: float,
        stop: threading.Event,
    ) -> None:
        self._url, self._key, self._path = url, key, f"/v1/{pipeline}/events"
        self._patience, self._stop = patience, stop
        self._reason = "stopped"
        self._progress = time.monotonic()
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.Client(timeout=httpx.Timeout(60, connect=5), limits=limits)

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def deliver(self, batch_key: str, first: int, rows: Sequence[bytes]) -> Outcome:
        """Post rows of one group, the first of which has the number ``first`` (from 0), until each is answered.

        A row of no bytes is left out. Once one delivery has failed, so does every other: rows sent behind those that
        were given up would lie before them.

        Raises:
            SendError: the collector refuses all requests, or none was answered for too long.
        """
        try:
            self._go_on()
            return self._deliver(batch_key, first, rows)
        except Exception as error:
            if not self._stop.is_set():
                self._reason = str(error)
                self._stop.set()  # here and now: a thread that is free takes its next rows before anybody is told
            raise

    def _deliver(self, batch_key: str, first: int, rows: Sequence[bytes]) -> Outcome:
        pending = {first + place: row for place, row in enumerate(rows) if row}
        outcome = Outcome()
        attempt = 0
        while pending:
            answer = self._post(batch_key, pending)
            if answer is None or answer.status_code in _AGAIN:
                reason = "does not answer" if answer is None else f"answers {answer.status_code}, {_detail(answer)}"
                wait = None if answer is None else _seconds(answer.headers.get("retry-after"))
            elif answer.status_code in (202, 207):
                before = len(pending)
                reason, wait = self._sort(answer, pending, outcome)
                if len(pending) < before:
                    self._progress, attempt = time.monotonic(), 0
                if not pending:
                    break
            elif answer.status_code == 413:
                self._split(batch_key, pending, outcome, answer)
                break
            else:
                raise SendError(hopeless(answer))
            attempt += 1
            self._wait(attempt, wait, reason)
        return outcome

    def _post(self, batch_key: str, pending: Mapping[int, bytes]) -> httpx.Response | None:
        """The answer, or None where there was none."""
        group = next(iter(pending)) // GROUP
        lines = [b""] * (max(pending) % GROUP + 1)
        for row, line in pending.items():
            lines[row % GROUP] = line
        headers = {
            "Authorization": f"Bearer {self._key()}",
            "Content-Type": "application/x-ndjson",
            "Idempotency-Key": f"{batch_key}.{group}",
        }
        try:
            return self._client.post(self._url() + self._path, content=b"\n".join(lines), headers=headers)
        except httpx.TransportError:
            return None

    def _sort(self, answer: httpx.Response, pending: dict[int, bytes], outcome: Outcome) -> tuple[str, float | None]:
        """Take out of ``pending`` what is answered for good; why the rest is not, and seconds to wait."""
        receipts = _receipts(answer, pending)
        reason, wait = "", _seconds(answer.headers.get("retry-after"))
        for row, receipt in receipts.items():
            status = receipt["status"]
            if status == 202:
                outcome.accepted += 1
            elif status in _AGAIN:
                reason = f"answers {status}, {receipt.get('detail', '')}"
                wait = wait or _seconds(receipt.get("retry_after"))
                continue
            else:
                detail, errors = str(receipt.get("detail", "")), receipt.get("errors", ())
                outcome.refused.append(Refusal(row + 1, status, detail, errors))
            del pending[row]
        return reason, wait

    def _split(self, batch_key: str, pending: dict[int, bytes], outcome: Outcome, answer: httpx.Response) -> None:
        """What is too large for one request in two; a single row that is too large is refused."""
        if len(pending) == 1:
            outcome.refused.append(Refusal(next(iter(pending)) + 1, 413, _detail(answer)))
            return
        rows = sorted(pending)
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            lines = [pending.get(row, b"") for row in range(part[0], part[-1] + 1)]
            done = self.deliver(batch_key, part[0], lines)
            outcome.accepted += done.accepted
            outcome.refused += done.refused

    def _wait(self, attempt: int, wait: float | None, reason: str) -> None:
        backoff = min(_LONGEST_WAIT, 0.25 * 2 ** min(attempt, 10))
        # Never all at one moment, and never before the collector asked for.
        seconds = (wait or 0) + backoff * random.uniform(0.5, 1) if wait is None else wait + random.uniform(0, 0.5)  # noqa: S311
        idle = time.monotonic() - self._progress
        if idle + seconds > self._patience:
            raise SendError(f"the collector {reason or 'does not answer'}, and no row was answered for {idle:.0f} s")
        self._go_on(seconds)

    def _go_on(self, wait: float = 0) -> None:
        """Wait so many seconds; SendError with the first reason if sending has ended."""
        if self._stop.wait(wait):
            raise SendError(self._reason)


def _receipts(answer: httpx.Response, pending: Mapping[int, bytes]) -> dict[int, dict[str, Any]]:
    """Row → its receipt; one a line that was not blank, in their order."""
    receipts = orjson.loads(answer.content)["receipts"]
    if len(receipts) != len(pending):
        raise SendError(f"the collector gave {len(receipts)} receipts for {len(pending)} lines")
    return dict(zip(sorted(pending), receipts, strict=True))


def _seconds(text: str | int | None) -> float | None:
    try:
        return None if text is None else min(60.0, max(0.0, float(text)))
    except ValueError:  # a date, which the collector never sends
        return None


def _detail(answer: httpx.Response) -> str:
    try:
        return str(orjson.loads(answer.content)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return answer.reason_phrase


def hopeless(answer: httpx.Response) -> str:
    """What an answer says that waiting does not change, and what to do."""
    hint = {
        401: "give the right key with --key-file",
        403: "give a key for this pipeline with --key-file",
        404: "declare the pipeline first, or correct --pipeline",
        415: "the collector is older than this command",
    }.get(answer.status_code, "see the collector's log")
    return f"the collector answers {answer.status_code}, {_detail(answer)}: {hint}"
