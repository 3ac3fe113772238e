"""Producing with an answer: what :meth:`AckProducer.send` returns is settled once the brokers have acknowledged."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from levada.config import CollectorSettings, KafkaSettings

_QUEUE_KBYTES: Final = 32_768
_POLL_SECONDS: Final = 0.1
_LIST_SECONDS: Final = 1.0
_SUSPECT_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 2.0
_LOOK_AGAIN_SECONDS: Final = 0.3
_GUARD_SECONDS: Final = 0.05
_PAUSE_SECONDS: Final = 0.5
_STALL_SECONDS: Final = 0.65
_RENEW_SECONDS: Final = 1.0
_STUCK_SECONDS: Final = 3.0
_RENEW_GAP_SECONDS: Final = 20.0
_LET_GO_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class Receipt(NamedTuple):
    """Where an acknowledged event is in its topic."""

    partition: int
    offset: int | None
    """None where Kafka has it from an earlier attempt, and does not say where."""


@dataclass(frozen=True, slots=True)
class NotAcknowledged:
    """Why Kafka has not acknowledged an event."""

    kind: Literal["unknown-topic", "too-large", "queue-full", "unreachable", "failed"]
    """``failed`` may have been written; all others certainly were not."""
    message: str


Outcome = Receipt | NotAcknowledged
Headers = list[tuple[str, str | bytes]]
"""As the client takes them."""


class Waiter(Protocol):
    """Whoever waits for an acknowledgement, such as a future."""

    def done(self) -> bool:
        """Whether it has its outcome."""

    def set_result(self, outcome: Outcome, /) -> None:
        """Take the outcome; called once, in the event loop. Does not raise."""


_KINDS: Final[dict[int, Literal["unknown-topic", "too-large", "queue-full"]]] = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "unknown-topic",
    KafkaError._UNKNOWN_TOPIC: "unknown-topic",
    KafkaError.MSG_SIZE_TOO_LARGE: "too-large",
    KafkaError._QUEUE_FULL: "queue-full",
}


class AckProducer:
    """An idempotent producer for one event loop.

    Delivery reports arrive on a thread of their own and are handed to the loop in batches: one wake-up for all that
    came since the last, not one a request. After an error that ends librdkafka's client (as when its rights come later
    than its password) a new one takes over; events in the old one are answered as not acknowledged.

    Kafka counts as unreachable when it does not list its topics, or acknowledges nothing while events wait. From then
    on events are refused at once, until it lists them again.

    An event that is not acknowledged in time is answered so and stays in the client's queue. Were it taken out, one
    that was sent after it could still land, and its retry would come behind that: per key, the first copies that land
    are in the order in which they were sent.
    """

    def __init__(self, kafka: KafkaSettings, collector: CollectorSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timeout = collector.delivery_timeout
        self._reports: list[tuple[Waiter, Outcome]] = []
        self._waiting: dict[Waiter, float] = {}  # in the order they were sent, with the time
        self._overdue: dict[Waiter, float] = {}  # those that have their answer, and no report
        self._acknowledged = self._connected = 0.0
        self._listing = math.inf  # since when Kafka has listed its topics whenever it was asked
        self._closing = threading.Event()
        self._suspect = asyncio.Event()
        self.topics: frozenset[str] = frozenset()
        """Topics that exist and that this client may see, as of the last look."""
        self.seen = False
        """Whether Kafka has answered at least once."""
        self.reachable = False
        """Whether Kafka answers, as far as is known."""
        self._fatal = False
        self._kafka, self._collector = kafka, collector
        self._producer = self._connect()
        self._thread = threading.Thread(target=self._poll, name="delivery-reports", daemon=True)
        self._thread.start()
        self._tasks = [loop.create_task(self._keep_looking()), loop.create_task(self._guard())]

    def _connect(self) -> Producer:
        self._connected = time.monotonic()
        return Producer(
            {
                **self._kafka.producer(),
                "client.id": "levada-collector",
                # Brokers pay by the request: 2 ms cost them twice the CPU, and made the slowest answers slower.
                "linger.ms": 5,
                # Room for the envelope: the limit for clients is on the body.
                "message.max.bytes": self._collector.max_body_bytes + 65_536,
                "message.timeout.ms": 0,  # none leaves the queue before those that were sent earlier
                "queue.buffering.max.kbytes": _QUEUE_KBYTES,
                # A link that was cut is used again soon after it heals, not when TCP feels like it.
                "socket.timeout.ms": 3_000,
                "socket.connection.setup.timeout.ms": 1_500,
                "socket.nagle.disable": True,
                "reconnect.backoff.ms": 100,
                "reconnect.backoff.max.ms": 1_000,
                "topic.metadata.propagation.max.ms": 1_000,
                "error_cb": self._problem,
                "logger": logging.getLogger("librdkafka"),
            }
        )

    @property
    def alive(self) -> bool:
        """Whether delivery reports are still taken, and those for whom none comes are answered."""
        return self._thread.is_alive() and not any(task.done() for task in self._tasks)

    def send(self, topic: str, value: bytes, key: str | bytes, headers: Headers) -> asyncio.Future[Outcome]:
        """Produce one event; the future is settled by its acknowledgement, or the want of it, and never raises."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self.send_for(future, topic, value, key, headers)
        return future

    def send_for(self, waiter: Waiter, topic: str, value: bytes, key: str | bytes, headers: Headers) -> None:
        """Produce one event for somebody who is told of its acknowledgement, or the want of it, maybe at once."""
        if not self.reachable:
            waiter.set_result(NotAcknowledged("unreachable", "no broker answers"))
            return
        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=partial(self._report, waiter))
        except BufferError:
            waiter.set_result(NotAcknowledged("queue-full", "too many events wait for Kafka"))
        except KafkaException as error:
            waiter.set_result(_refused(error.args[0]))
        else:
            self._waiting[waiter] = time.monotonic()

    async def _look(self, patience: float) -> None:
        """See which topics exist, and whether Kafka answers."""
        try:
            listing = await asyncio.to_thread(self._producer.list_topics, timeout=patience)
        except KafkaException as error:
            self._listing = math.inf
            if time.monotonic() - self._acknowledged > patience:
                self._lost(error.args[0].str())
            return
        self.topics = frozenset(name for name, topic in listing.topics.items() if topic.error is None)
        self._listing = min(self._listing, time.monotonic())
        if not self.reachable:
            log.info("Kafka answers", topics=len(self.topics))
        self.seen = self.reachable = True

    async def close(self) -> None:
        """Stop; whoever still waits has had the answer 503."""
        self.reachable = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._finish)

    def _finish(self) -> None:
        self._closing.set()
        # Its wait is for a time of the wall clock: were that set back by hours, it would last hours.
        self._thread.join(_POLL_SECONDS * 10)
        self._producer.flush(self._timeout)
        _let_go(self._producer)
        del self._producer

    async def _keep_looking(self) -> None:
        while True:
            suspect = self._suspect.is_set() and self.reachable
            self._suspect.clear()
            await self._look(_SUSPECT_SECONDS if suspect else _LIST_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS if self.reachable else _LOOK_AGAIN_SECONDS):
                    await self._suspect.wait()

    async def _guard(self) -> None:
        """Answer those for whom no report comes in time."""
        stalled, looked = 0, time.monotonic()
        while True:
            await asyncio.sleep(_GUARD_SECONDS)
            now = time.monotonic()
            paused, looked = now - looked > _PAUSE_SECONDS, now
            if paused:  # reports may be right behind
                continue
            oldest = next(iter(self._waiting.values()), math.inf)
            # Twice in a row, because the loop may have been busy with one callback.
            # The first one of a new client also waits for the client's producer id.
            patience = _STALL_SECONDS if self._acknowledged > self._connected else self._timeout
            stalled = stalled + 1 if now - max(oldest, self._acknowledged) > patience else 0
            if stalled > 1:
                self._lost("nothing is acknowledged")
                self._suspect.set()
            late = now - self._timeout
            if oldest < late:
                self._give_up([waiter for waiter, sent in self._waiting.items() if sent < late], "no report in time")
            self._look_for_stuck(now)

    def _look_for_stuck(self, now: float) -> None:
        """Have a new client take over where a partition takes nothing.

        librdkafka keeps to the leader it knows when a topic was made again, since the new one's leader epochs are lower
        than those it has seen; only a new client asks afresh.
        """
        sent = next(iter(self._overdue.values()), math.inf)
        since = max(sent + self._timeout, self._listing, self._connected + _RENEW_GAP_SECONDS)
        if now - since > _STUCK_SECONDS:
            log.error("a partition takes nothing, a new client takes over", seconds=round(now - sent, 1))
            self._renew()

    def _renew(self) -> None:
        """Have a new client take over; in the loop, so that nobody sends between the old one's end and its news."""
        self._give_up(list(self._waiting), "the client was replaced")
        self._overdue.clear()
        _let_go(self._producer)
        self._producer = self._connect()

    def _lost(self, why: str) -> None:
        if self.reachable or not self.seen:
            log.warning("Kafka does not answer", error=why)
        self.reachable = False
        self._give_up(list(self._waiting), why)

    def _give_up(self, waiters: list[Waiter], why: str) -> None:
        """Answer waiters whose events may land yet."""
        failed = NotAcknowledged("failed", f"Kafka did not acknowledge the event: {why}")
        for waiter in waiters:
            self._overdue[waiter] = self._waiting.pop(waiter)
            if not waiter.done():  # else nobody waits any more
                waiter.set_result(failed)

    def _report(self, waiter: Waiter, error: KafkaError | None, message: Message) -> None:
        outcome = Receipt(message.partition(), message.offset()) if error is None else _refused(error)
        self._reports.append((waiter, outcome))

    def _poll(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                self._problem(error.args[0])
            if self._fatal:
                self._fatal = False
                self._loop.call_soon_threadsafe(self._renew)
                self._closing.wait(_RENEW_SECONDS)  # what ended the last one may not be over yet
            if self._reports:
                reports, self._reports = self._reports, []
                self._loop.call_soon_threadsafe(self._settle, reports)

    def _settle(self, reports: list[tuple[Waiter, Outcome]]) -> None:
        acknowledged = False
        for waiter, outcome in reports:
            acknowledged |= isinstance(outcome, Receipt)
            if self._waiting.pop(waiter, None) is None:
                self._overdue.pop(waiter, None)
            elif not waiter.done():
                waiter.set_result(outcome)
        if acknowledged:
            self._acknowledged = time.monotonic()

    def _problem(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True
            log.error("the Kafka client cannot go on, a new one takes over", error=error.str())
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._loop.call_soon_threadsafe(self._suspect.set)


def _let_go(client: Producer) -> None:
    """End a client on a thread of its own.

    The last reference ends it, in whichever thread drops that, and to end it is to wait for librdkafka's own threads:
    at times for ever, which neither the event loop nor a process that stops may do.
    """

    def hold(clients: list[Producer]) -> None:
        time.sleep(_LET_GO_SECONDS)  # until the calls of other threads that have it are over
        clients.clear()

    threading.Thread(target=hold, args=([client],), name="old-client", daemon=True).start()


def _refused(error: Any) -> NotAcknowledged:
    return NotAcknowledged(_KINDS.get(error.code(), "failed"), f"Kafka did not take the event: {error.str()}")
