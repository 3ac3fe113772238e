"""The collector: HTTP in front of Kafka. A 202 means that the brokers have the event; nothing else does.

The application is bare ASGI: routing and requests by a framework cost several times what the rest of it does. One event
that nothing speaks against is answered without even that.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
import time
import traceback
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import orjson
import structlog
from prometheus_client import Counter, Gauge, Histogram

from levada import process
from levada.config import CollectorSettings, KafkaSettings, Settings, required
from levada.event import MAX_EVENT_ID, Violation
from levada.http import server
from levada.http.connection import Exchange
from levada.http.keys import ApiKeys, load_keys
from levada.http.problem import MEDIA_TYPE, Problem, unavailable
from levada.http.reload import Reloaded, refreshing
from levada.http.request import (
    JSON,
    MAX_BATCH_KEY,
    Bodies,
    check_allows,
    event_key_of,
    headers_of,
    key_of,
    media_type_of,
)
from levada.http.server import Receive, Scope, Send, limits_of, listen
from levada.ingest import bulk, openapi
from levada.ingest.admission import Declared, Envelope
from levada.ingest.producer import AckProducer, NotAcknowledged, Outcome, Receipt
from levada.ingest.reload import Declarations
from levada.ingest.seal import Sealer, load_pepper

_MAX_HELD_BYTES: Final = 32 * 1024 * 1024
_JSON_LINE: Final = b"content-type: application/json\r\n"
_NDJSON: Final = b"application/x-ndjson"
_TAKEN: Final = (JSON, _NDJSON)
_SEND_AS: Final = "send one event, or an array, as Content-Type: application/json, lines as application/x-ndjson"
_TARGET: Final = re.compile(rb"/v1/([a-z0-9-]+)/events")

REQUESTS: Final = Counter("levada_collector_requests", "Requests answered.", ["pipeline", "status"])
EVENTS: Final = Counter("levada_collector_events", "Events answered, alone or in a batch.", ["pipeline", "status"])
PRODUCE_SECONDS: Final = Histogram(
    "levada_collector_produce_seconds",
    "From handing an event to the producer to the brokers' acknowledgement.",
    ["pipeline"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
)
REFUSED: Final = Counter(
    "levada_collector_not_acknowledged", "Events that Kafka did not acknowledge.", ["pipeline", "kind"]
)
IN_FLIGHT: Final = Gauge("levada_collector_in_flight", "Requests being read or waiting for Kafka.")
REACHABLE: Final = Gauge("levada_collector_kafka_reachable", "1 while Kafka answers.")

log = structlog.get_logger(__name__)

_NOTE_SECONDS: Final = 5.0
_noted: dict[str, float] = {}
_random: Final = random.Random()  # noqa: S311 - an id has to be unique, not secret


class _Answer:
    """Settles an exchange when its event is acknowledged: what a future is, without a round of the event loop."""

    __slots__ = ("_collector", "_done", "begin", "declared", "event_id", "exchange", "review")

    def __init__(
        self, collector: Collector, exchange: Exchange, declared: Declared, event_id: str, review: bool
    ) -> None:
        self._collector = collector
        self._done = False
        self.exchange = exchange
        self.declared = declared
        self.event_id = event_id
        self.review = review
        self.begin = time.monotonic()

    def done(self) -> bool:
        return self._done

    def set_result(self, outcome: Outcome) -> None:
        self._done = True
        self._collector.settle(self, outcome)


class Collector:
    """The ASGI application and what it needs: keys, declarations, a producer."""

    def __init__(self, settings: Settings) -> None:
        self._settings: CollectorSettings = settings.collector
        self._kafka: KafkaSettings = required(settings.kafka, "LEVADA_KAFKA__BOOTSTRAP")
        path, pepper = self._settings.api_keys_file, self._settings.pepper_file
        self._keys: Reloaded[ApiKeys] = Reloaded(path, lambda: load_keys(path))
        self._pepper: Reloaded[bytes] | None = None
        self._sealer: Sealer | None = None
        if pepper.exists():
            secret = self._pepper = Reloaded(pepper, lambda: load_pepper(pepper))
            self._sealer = Sealer(self._settings, lambda: secret.value)
        self._pipelines = Declarations(settings.pipelines, self._sealer)
        self._producer: AckProducer | None = None
        self._in_flight = 0
        self._bodies = Bodies(_MAX_HELD_BYTES)
        self._counters: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._timers: dict[str, Any] = {}
        self.draining = False
        """While true, clients are told to close their connections."""
        IN_FLIGHT.set_function(lambda: self._in_flight)
        REACHABLE.set_function(lambda: self._producer is not None and self._producer.reachable)

    def ready(self) -> bool:
        """Whether requests are answered. Stays so while Kafka is away: clients shall see our 503, not a refusal."""
        return self._producer is not None and self._producer.seen

    def live(self) -> bool:
        """Whether acknowledgements are still taken; Kafka being away is no reason to start over."""
        return self._producer is None or self._producer.alive

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connected to Kafka, with files looked at now and then."""
        self._producer = AckProducer(self._kafka, self._settings, asyncio.get_running_loop())
        try:
            async with refreshing(self._refresh):
                yield
        finally:
            await self._producer.close()
            if self._sealer is not None:
                self._sealer.close()

    def _refresh(self) -> None:
        self._keys.refresh()
        self._pipelines.refresh()
        if self._pepper is not None:
            self._pepper.refresh()

    def count(self, pipeline: str, status: int, events: int = 1) -> None:
        """Count an answered request; ``pipeline`` is empty where none is meant."""
        counters = self._counters.get((pipeline, status))
        if counters is None:
            counters = self._counters[pipeline, status] = (
                REQUESTS.labels(pipeline, status),
                EVENTS.labels(pipeline, status),
            )
        counters[0].inc()
        if events:
            counters[1].inc(events)

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was read."""
        self.count("", status, 0)

    def direct(self, exchange: Exchange) -> bool:
        """Take a request of one event that nothing speaks against; what is wrong with another is told by ASGI."""
        name = _TARGET.fullmatch(exchange.target)
        if name is None or self.draining or self._in_flight >= self._settings.max_in_flight:
            return False
        body = exchange.body
        try:
            headers = headers_of(exchange.headers)
            declared = self._authorize(headers, name[1].decode())
            if (
                declared.seals
                or media_type_of(headers, _TAKEN, _SEND_AS) != JSON
                or bulk.is_array(body)
                or len(body) > self._settings.max_body_bytes
                or not self._bodies.room(body)
            ):
                return False
            event_id = _event_id(headers) or _new_id()
            event = declared.check(body)
            producer = self._ready_for(declared, event_id)
        except Problem:
            return False
        self._in_flight += 1
        self._bodies.hold(body)
        # From here on it is ours: a screen that was asked twice would count the event twice.
        envelope = declared.envelope(event, event_id)
        waiter = _Answer(self, exchange, declared, event_id, envelope.review)
        producer.send_for(waiter, envelope.topic, envelope.value, envelope.key, envelope.headers)
        return True

    def settle(self, answer: _Answer, outcome: Outcome) -> None:
        """Answer an exchange that was taken."""
        exchange, declared = answer.exchange, answer.declared
        self._in_flight -= 1
        self._bodies.release(exchange.body)
        name = declared.pipeline.name
        if isinstance(outcome, Receipt):
            status, lines = 202, _JSON_LINE
            self._took(name, answer.begin)
            body = _receipt(answer.event_id, outcome, answer.review)
        else:
            problem = _problem(outcome, declared, answer.event_id)
            status, body = problem.status, problem.body()
            named = {"content-type": MEDIA_TYPE.decode(), **problem.headers}
            lines = "".join(f"{header.lower()}: {value}\r\n" for header, value in named.items()).encode()
        self.count(name, status)
        exchange.respond(status, lines, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        parts = scope["path"].split("/")
        name = parts[2] if len(parts) == 4 and parts[:2] == ["", "v1"] else ""
        label = name if name in self._pipelines else ""
        media_type, counted = JSON, 1
        extra: dict[str, str] = {}
        try:
            if scope["http_version"] not in ("1.1", "1.0"):
                raise Problem(400, "this is not HTTP/1.1")
            headers = headers_of(scope["headers"], host=scope["http_version"] == "1.1")
            match parts:
                case ["", "v1", _, "events"]:
                    _check_method(scope, "POST")
                    status, body, extra, counted = await self._events(name, headers, receive)
                case ["", "v1", _, "openapi.json"]:
                    _check_method(scope, "GET")
                    status, counted = 200, 0
                    body = orjson.dumps(openapi.document([self._authorize(headers, name).pipeline], self._settings))
                case ["", "openapi.json"]:
                    _check_method(scope, "GET")
                    status, counted, key = 200, 0, key_of(self._keys.value, headers)
                    allowed = [each.pipeline for each in self._pipelines.values() if key.allows(each.pipeline.name)]
                    body = orjson.dumps(openapi.document(allowed, self._settings))
                case _:
                    raise Problem(404, "post events to /v1/<pipeline>/events")
        except Problem as problem:
            status, media_type, body, extra = problem.status, MEDIA_TYPE, problem.body(), problem.headers
        except Exception as error:
            # Where, not what: the text of an error may hold a value of the event.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("a request failed", error=type(error).__name__, where=where)
            status, media_type = 500, MEDIA_TYPE
            body = Problem(500, "the collector failed; its log tells more").body()
        answer = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
        if extra:
            answer += [(name.lower().encode(), value.encode()) for name, value in extra.items()]
        if self.draining:
            answer.append((b"connection", b"close"))
        self.count(label, status, counted)
        await send({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": body})

    def _authorize(self, headers: dict[bytes, bytes], name: str) -> Declared:
        key = key_of(self._keys.value, headers)
        declared = self._pipelines.get(name)
        if declared is None:
            raise Problem(404, f"there is no pipeline {name[:64]}: declared are {', '.join(self._pipelines) or 'none'}")
        check_allows(key, name)
        return declared

    async def _events(
        self, name: str, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[int, bytes, dict[str, str], int]:
        """Status, body and headers of the answer, and how many events it is for that were not counted yet."""
        declared = self._authorize(headers, name)
        many = media_type_of(headers, _TAKEN, _SEND_AS) == _NDJSON
        event_id = _event_id(headers)
        if self._in_flight >= self._settings.max_in_flight:
            raise unavailable("too many requests at once", retry_after=1)
        self._in_flight += 1
        body = b""
        try:
            body = await self._bodies.read(headers, receive, partial(self._check_size, many))
            if many or bulk.is_array(body):
                return await self._batch(declared, headers, body, many)
            return 202, await self._single(declared, event_id or _new_id(), body), {}, 1
        finally:
            self._in_flight -= 1
            self._bodies.release(body)

    def _check_size(self, many: bool, size: int, begin: bytes) -> None:
        if size > self._settings.max_body_bytes:
            limit, what = self._settings.max_body_bytes, "an event"
            if many or not begin or bulk.is_array(begin):
                limit, what = self._settings.max_bulk_bytes, "a batch"
            if size > limit:
                raise Problem(413, f"{what} may have {limit} bytes")

    def _ready_for(self, declared: Declared, event_id: str | None) -> AckProducer:
        """The producer, if it can be used for this pipeline now."""
        producer, pipeline = self._producer, declared.pipeline
        if producer is None or not producer.seen:
            raise unavailable("Kafka has not answered yet", retry_after=5, event_id=event_id)
        if not producer.reachable:
            raise unavailable("Kafka does not answer", retry_after=2, event_id=event_id)
        if pipeline.topic_name not in producer.topics:
            raise _no_topic(pipeline.topic_name, event_id)
        if pipeline.screen and pipeline.review_topic not in producer.topics:
            raise _no_topic(pipeline.review_topic, event_id)
        return producer

    async def _single(self, declared: Declared, event_id: str, body: bytes) -> bytes:
        event = declared.check(body)
        producer = self._ready_for(declared, event_id)
        if declared.seals:
            await declared.seal(event)
        envelope = declared.envelope(event, event_id)
        begin = time.monotonic()
        outcome = await producer.send(envelope.topic, envelope.value, envelope.key, envelope.headers)
        if isinstance(outcome, NotAcknowledged):
            raise _problem(outcome, declared, event_id)
        self._took(declared.pipeline.name, begin)
        return _receipt(event_id, outcome, envelope.review)

    async def _batch(
        self, declared: Declared, headers: dict[bytes, bytes], body: bytes, many: bool
    ) -> tuple[int, bytes, dict[str, str], int]:
        limit, key = self._settings.max_bulk_lines, _event_id(headers, MAX_BATCH_KEY) or _new_id()
        lines = bulk.lines_of(body, limit) if many else iter(bulk.items_of(body, limit))
        producer = self._ready_for(declared, None)

        def send(envelope: Envelope) -> asyncio.Future[Outcome]:
            return producer.send(envelope.topic, envelope.value, envelope.key, envelope.headers)

        settings = self._settings
        batch = bulk.Batch(
            declared, key, send, _problem, max_line_bytes=settings.max_body_bytes, patience=settings.delivery_timeout
        )
        begin = time.monotonic()
        await batch.deliver(lines)
        statuses = batch.statuses
        if not statuses:
            raise Problem(400, "the batch is empty", errors=[Violation("", "json", "holds no event")])
        for status, events in statuses.items():
            EVENTS.labels(declared.pipeline.name, status).inc(events)
        if 202 in statuses:
            self._took(declared.pipeline.name, begin)
        extra = {"Retry-After": str(batch.retry_after)} if batch.retry_after else {}
        return 202 if statuses.keys() == {202} else 207, batch.answer(), extra, 0

    def _took(self, pipeline: str, begin: float) -> None:
        timer = self._timers.get(pipeline)
        if timer is None:
            timer = self._timers[pipeline] = PRODUCE_SECONDS.labels(pipeline)
        timer.observe(time.monotonic() - begin)


def _check_method(scope: Scope, allowed: str) -> None:
    if scope["method"] != allowed:
        raise Problem(405, f"{allowed} is the only method here", headers={"Allow": allowed})


def _event_id(headers: dict[bytes, bytes], limit: int = MAX_EVENT_ID) -> str | None:
    key = event_key_of(headers, limit)
    return None if key is None else key.decode()


def _receipt(event_id: str, outcome: Receipt, review: bool) -> bytes:
    receipt: dict[str, Any] = {"event_id": event_id, "partition": outcome.partition, "offset": outcome.offset}
    if review:
        receipt["review"] = True
    return orjson.dumps(receipt)


def _new_id() -> str:
    """A random UUID. Not by os.urandom: for a system call the interpreter's lock would change hands."""
    text = f"{_random.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"


def _problem(outcome: NotAcknowledged, declared: Declared, event_id: str) -> Problem:
    """Why an event was not acknowledged, for the client."""
    name = declared.pipeline.name
    REFUSED.labels(name, outcome.kind).inc()
    if (now := time.monotonic()) > _noted.get(name, 0.0):  # the counter has them all
        _noted[name] = now + _NOTE_SECONDS
        log.warning("not acknowledged", pipeline=name, kind=outcome.kind, error=outcome.message)
    match outcome.kind:
        case "unknown-topic":
            return _no_topic(declared.pipeline.topic_name, event_id)
        case "too-large":
            return Problem(413, "the event is larger than its topic allows")
        case "queue-full" | "unreachable":
            return unavailable("Kafka does not take the event now", retry_after=2, event_id=event_id)
    detail = "Kafka has not acknowledged the event; it may have landed: repeat it with this Idempotency-Key"
    return unavailable(detail, retry_after=2, event_id=event_id)


def _no_topic(topic: str, event_id: str | None) -> Problem:
    return unavailable(f"topic {topic} does not exist: run levada topics apply", retry_after=30, event_id=event_id)


async def _serve(collector: Collector, settings: CollectorSettings, stop: threading.Event) -> None:
    async with collector.running():
        await listen(collector, settings.port, limits_of(settings), stop)


def run(settings: Settings) -> None:
    """The process ``levada collect``."""
    collector = Collector(settings)

    def main(stop: threading.Event) -> None:
        server.run(_serve(collector, settings.collector, stop))

    process.run(main, settings, ready=collector.ready, live=collector.live)
