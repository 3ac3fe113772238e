"""Producing with an answer: ``await`` returns once the brokers have acknowledged."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from levada.config import CollectorSettings, KafkaSettings

_QUEUE_KBYTES: Final = 32_768
_POLL_SECONDS: Final = 0.1
_LIST_SECONDS: Final = 1.0
_RENEW_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Receipt:
    """Where an acknowledged event is in its topic."""

    partition: int
    offset: int


class NotAcknowledgedError(RuntimeError):
    """An event that Kafka has not acknowledged.

    Attributes:
        kind: ``unknown-topic``, ``too-large``, ``queue-full`` (certainly not written) or ``failed`` (may be written).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


_KINDS: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "unknown-topic",
    KafkaError._UNKNOWN_TOPIC: "unknown-topic",
    KafkaError.MSG_SIZE_TOO_LARGE: "too-large",
    KafkaError._QUEUE_FULL: "queue-full",
}


class AckProducer:
    """An idempotent producer for one event loop.

    Delivery reports arrive on a thread of their own and are handed to the loop in batches: one wake-up for all that
    came since the last, not one a request. After an error that ends librdkafka's client (as when its rights come later
    than its password) that thread makes a new one; events in the old one are answered as not acknowledged.
    """

    def __init__(self, kafka: KafkaSettings, collector: CollectorSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timeout = collector.delivery_timeout
        self._reports: list[_Report] = []
        self._closing = threading.Event()
        self.topics: frozenset[str] = frozenset()
        """Topics that exist and that this client may see, as of the last look."""
        self.seen = False
        """Whether Kafka has answered at least once."""
        self._fatal = False
        self._kafka, self._collector = kafka, collector
        self._producer = self._connect()
        self._thread = threading.Thread(target=self._poll, name="delivery-reports", daemon=True)
        self._thread.start()

    def _connect(self) -> Producer:
        return Producer(
            {
                **self._kafka.client(),
                "client.id": "levada-collector",
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": 2,
                # Room for the envelope: the limit for clients is on the body.
                "message.max.bytes": self._collector.max_body_bytes + 65_536,
                # Beyond this the client was told to retry, so there is no use in trying on.
                "message.timeout.ms": int(self._collector.delivery_timeout * 1000),
                "queue.buffering.max.kbytes": _QUEUE_KBYTES,
                "reconnect.backoff.ms": 500,
                "reconnect.backoff.max.ms": 1_000,
                "topic.metadata.propagation.max.ms": 1_000,
                "allow.auto.create.topics": False,
                "error_cb": self._problem,
                "logger": logging.getLogger("librdkafka"),
            }
        )

    @property
    def alive(self) -> bool:
        """Whether delivery reports are still taken."""
        return self._thread.is_alive()

    async def send(self, topic: str, value: bytes, key: str, headers: dict[str, str]) -> Receipt:
        """Produce one event and wait for its acknowledgement.

        Raises:
            NotAcknowledgedError: there was none in time, or Kafka refused.
        """
        acknowledged: asyncio.Future[Receipt] = self._loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            outcome = Receipt(message.partition(), message.offset()) if error is None else _refused(error)
            self._reports.append((acknowledged, outcome))

        try:
            self._producer.produce(topic, value, key, headers=list(headers.items()), on_delivery=report)
        except BufferError:
            raise NotAcknowledgedError("queue-full", "too many events wait for Kafka") from None
        except KafkaException as error:
            raise _refused(error.args[0]) from error
        try:
            return await asyncio.wait_for(acknowledged, self._timeout)
        except TimeoutError:
            raise NotAcknowledgedError("failed", "Kafka did not acknowledge the event in time") from None

    async def look(self) -> None:
        """See which topics exist."""
        try:
            listing = await asyncio.to_thread(self._producer.list_topics, timeout=_LIST_SECONDS)
        except KafkaException as error:
            log.warning("Kafka does not answer", error=error.args[0].str())
            return
        self.topics = frozenset(name for name, topic in listing.topics.items() if topic.error is None)
        self.seen = True

    def close(self) -> None:
        """Stop the thread; whoever still waits has had the answer 503."""
        self._closing.set()
        self._thread.join()
        self._producer.flush(self._timeout)

    def _poll(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                self._problem(error.args[0])
            if self._fatal:
                self._fatal = False
                self._producer = self._connect()
                self._closing.wait(_RENEW_SECONDS)  # what ended the last one may not be over yet
            if self._reports:
                reports, self._reports = self._reports, []
                self._loop.call_soon_threadsafe(_settle, reports)

    def _problem(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True
            log.error("the Kafka client cannot go on, a new one takes over", error=error.str())


_Report = tuple["asyncio.Future[Receipt]", Receipt | NotAcknowledgedError]


def _settle(reports: list[_Report]) -> None:
    for acknowledged, outcome in reports:
        if acknowledged.done():
            continue  # it took too long: the client has had its answer
        if isinstance(outcome, Receipt):
            acknowledged.set_result(outcome)
        else:
            acknowledged.set_exception(outcome)


def _refused(error: Any) -> NotAcknowledgedError:
    return NotAcknowledgedError(_KINDS.get(error.code(), "failed"), f"Kafka did not take the event: {error.str()}")
