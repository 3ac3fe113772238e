"""The collector: HTTP in front of Kafka. A 202 means that the brokers have the event; nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import structlog
import uvicorn
import uvloop
from prometheus_client import Counter, Gauge, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from levada import process
from levada.config import CollectorSettings, KafkaSettings, Settings, required
from levada.event import EventError, Violation
from levada.ingest import keys
from levada.ingest.keys import ApiKeys, load_keys
from levada.ingest.problem import Problem, unavailable
from levada.ingest.producer import AckProducer, NotAcknowledgedError, Receipt
from levada.ingest.reload import Declarations, Declared, Reloaded

SCHEMA_VERSION: Final = "1"
"""Version of the envelope: JSON value, headers ``event-id``, ``event-time``, ``pipeline``, ``schema``."""

_MAX_HELD_BYTES: Final = 32 * 1024 * 1024
_BODY_SECONDS: Final = 30.0
_REFRESH_SECONDS: Final = 2.0
_GRACE_SECONDS: Final = 15
_EVENT_ID: Final = re.compile(r"[\x21-\x7e]{1,64}")

REQUESTS: Final = Counter("levada_collector_requests", "Requests answered.", ["pipeline", "status"])
PRODUCE_SECONDS: Final = Histogram(
    "levada_collector_produce_seconds",
    "From handing an event to the producer to the brokers' acknowledgement.",
    ["pipeline"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
)
IN_FLIGHT: Final = Gauge("levada_collector_in_flight", "Requests being read or waiting for Kafka.")

log = structlog.get_logger(__name__)


class Collector:
    """The application and what it needs: keys, declarations, a producer."""

    def __init__(self, settings: Settings) -> None:
        self._settings: CollectorSettings = settings.collector
        self._kafka: KafkaSettings = required(settings.kafka, "LEVADA_KAFKA__BOOTSTRAP")
        path = self._settings.api_keys_file
        self._keys: Reloaded[ApiKeys] = Reloaded(path, lambda: load_keys(path))
        self._pipelines = Declarations(settings.pipelines)
        self._producer: AckProducer | None = None
        self._in_flight = 0
        self._held = 0

    def ready(self) -> bool:
        """Whether requests are answered. Stays so while Kafka is away: clients shall see our 503, not a refusal."""
        return self._producer is not None and self._producer.seen

    def live(self) -> bool:
        """Whether acknowledgements are still taken; Kafka being away is no reason to start over."""
        return self._producer is None or self._producer.alive

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[Route("/v1/{pipeline}/events", self._events, methods=["POST"])],
            exception_handlers={Problem: _answer_problem, HTTPException: _answer_http, Exception: _answer_error},
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connected to Kafka, with files and topics looked at now and then."""
        self._producer = AckProducer(self._kafka, self._settings, asyncio.get_running_loop())
        watch = asyncio.create_task(self._watch(self._producer))
        try:
            yield
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            await asyncio.to_thread(self._producer.close)

    async def _watch(self, producer: AckProducer) -> None:
        while True:
            await producer.look()
            await asyncio.to_thread(self._refresh)
            await asyncio.sleep(_REFRESH_SECONDS)

    def _refresh(self) -> None:
        self._keys.refresh()
        self._pipelines.refresh()

    async def _events(self, request: Request) -> Response:
        name = str(request.path_params["pipeline"])
        label = name if name in self._pipelines else ""
        try:
            receipt = await self._accept(request, name)
        except Problem as problem:
            REQUESTS.labels(label, problem.status).inc()
            raise
        REQUESTS.labels(label, 202).inc()
        return Response(orjson.dumps(receipt), 202, media_type="application/json")

    async def _accept(self, request: Request, name: str) -> dict[str, str | int]:
        declared = self._authorize(request, name)
        _check_content_type(request)
        event_id = _event_id(request)
        if self._in_flight >= self._settings.max_in_flight:
            raise unavailable("too many requests at once", retry_after=1)
        self._in_flight += 1
        IN_FLIGHT.set(self._in_flight)
        try:
            async with self._body(request) as body:
                receipt = await self._produce(declared, event_id, body)
        finally:
            self._in_flight -= 1
            IN_FLIGHT.set(self._in_flight)
        return {"event_id": event_id, "partition": receipt.partition, "offset": receipt.offset}

    def _authorize(self, request: Request, name: str) -> Declared:
        given = request.headers.getlist("authorization")
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        key = keys.find(self._keys.value, token.strip().encode("latin-1")) if scheme.lower() == "bearer" else None
        if key is None:
            raise Problem(
                401, "send one known API key as Authorization: Bearer <key>", headers={"WWW-Authenticate": "Bearer"}
            )
        declared = self._pipelines.get(name)
        if declared is None:
            raise Problem(404, f"there is no pipeline {name[:64]}: declared are {', '.join(self._pipelines) or 'none'}")
        if not key.allows(name):
            raise Problem(403, f"this API key is not for pipeline {name}")
        return declared

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, of the size that is allowed and within the memory for all requests together."""
        limit = self._settings.max_body_bytes
        too_large = Problem(413, f"an event may have {limit} bytes")
        chunks: list[bytes] = []
        size = 0
        try:
            try:
                if int(request.headers.get("content-length", "0")) > limit:
                    raise too_large
                async with asyncio.timeout(_BODY_SECONDS):
                    async for chunk in request.stream():
                        size += len(chunk)
                        self._held += len(chunk)
                        if size > limit:
                            raise too_large
                        if self._held > _MAX_HELD_BYTES:
                            raise unavailable("too many events at once", retry_after=1)
                        chunks.append(chunk)
            except TimeoutError:
                raise Problem(408, f"the body did not come within {_BODY_SECONDS:.0f} seconds") from None
            except (ClientDisconnect, ValueError):
                raise Problem(400, "the body did not come whole") from None
            body = b"".join(chunks)
            chunks.clear()
            yield body
        finally:
            self._held -= size

    async def _produce(self, declared: Declared, event_id: str, body: bytes) -> Receipt:
        pipeline = declared.pipeline
        try:
            record = declared.checker.decode(body)
        except EventError as error:
            status, detail = (400, "the body is not JSON") if error.kind == "json" else (422, "the event is refused")
            raise Problem(status, detail, errors=error.violations) from None
        producer = self._producer
        if producer is None or not producer.seen:
            raise unavailable("Kafka has not answered yet", retry_after=5, event_id=event_id)
        if pipeline.topic_name not in producer.topics:
            raise _no_topic(pipeline.topic_name, event_id)
        headers = {
            "event-id": event_id,
            "event-time": datetime.now(UTC).isoformat(),
            "pipeline": pipeline.name,
            "schema": SCHEMA_VERSION,
        }
        key = event_id if pipeline.key is None else _key_text(record[pipeline.key])
        begin = time.monotonic()
        try:
            receipt = await producer.send(pipeline.topic_name, body, key, headers)
        except NotAcknowledgedError as error:
            log.warning("not acknowledged", pipeline=pipeline.name, kind=error.kind, error=str(error))
            if error.kind == "unknown-topic":
                raise _no_topic(pipeline.topic_name, event_id) from None
            if error.kind == "too-large":
                raise Problem(413, "the event is larger than its topic allows") from None
            detail = "Kafka has not acknowledged the event; it may have landed: repeat it with this Idempotency-Key"
            raise unavailable(detail, retry_after=5, event_id=event_id) from None
        PRODUCE_SECONDS.labels(pipeline.name).observe(time.monotonic() - begin)
        return receipt


def _check_content_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "send the event as Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "send the event without Content-Encoding")


def _event_id(request: Request) -> str:
    given = request.headers.get("idempotency-key")
    if given is None:
        return str(uuid.uuid4())
    if _EVENT_ID.fullmatch(given) is None:
        message = "must be 1 to 64 printable ASCII characters without spaces"
        raise Problem(400, f"Idempotency-Key {message}", errors=[Violation("Idempotency-Key", "[!-~]{1,64}", message)])
    return given


def _key_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _no_topic(topic: str, event_id: str) -> Problem:
    return unavailable(f"topic {topic} does not exist: run levada topics apply", retry_after=30, event_id=event_id)


def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101
    return error.response()


def _answer_http(_: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101
    REQUESTS.labels("", error.status_code).inc()
    detail = "post events to /v1/<pipeline>/events"
    return Problem(error.status_code, detail, headers=error.headers).response()


def _answer_error(_: Request, error: Exception) -> Response:
    REQUESTS.labels("", 500).inc()
    return Problem(500, "the collector failed; its log tells more").response()


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(collector: Collector, port: int, stop: threading.Event) -> None:
    server = _Server(
        uvicorn.Config(
            collector.application(),
            host="0.0.0.0",  # noqa: S104
            port=port,
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )

    async def watch_stop() -> None:
        await asyncio.to_thread(stop.wait)
        server.should_exit = True

    async with collector.running():
        watcher = asyncio.create_task(watch_stop())
        try:
            await server.serve()
        finally:
            stop.set()
            await watcher


def run(settings: Settings) -> None:
    """The process ``levada collect``."""
    collector = Collector(settings)

    def main(stop: threading.Event) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(collector, settings.collector.port, stop))

    process.run(main, settings, ready=collector.ready, live=collector.live)
