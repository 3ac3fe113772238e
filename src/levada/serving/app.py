"""The predictor's HTTP interface.

``POST /predict`` is answered by a bare ASGI function, because routing and validation by a framework would cost
several times what the model does; everything else (``/version``, probes, metrics, ``/openapi.json``) is FastAPI's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.exceptions import HTTPException

import levada
from levada.event import EventError, Violation
from levada.pipeline import Pipeline
from levada.scoring import to_columns
from levada.serving.champion import Champion

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_INSTANCES: Final = 10_000
_MAX_ERRORS: Final = 20
_INLINE_BYTES: Final = 65_536
"""Larger bodies are answered on a thread, so that they do not keep small ones waiting."""
_JSON: Final = b"application/json"
_PROBLEM: Final = b"application/problem+json"
_TYPES: Final = {"double": "number", "long": "integer", "boolean": "boolean", "string": "string"}

log = structlog.get_logger()

REQUESTS: Final = Counter("levada_predict_requests_total", "Answers of /predict", ["name", "code"])
ROWS: Final = Counter("levada_predict_rows_total", "Rows that were predicted", ["name"])
SECONDS: Final = Histogram(
    "levada_predict_seconds",
    "From the headers of a request to its whole answer",
    ["name"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: HTTPStatus, detail: str, errors: list[dict[str, Any]] | None = None, **headers: str
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers

    def body(self) -> bytes:
        """RFC 9457 problem details."""
        problem = {"type": "about:blank", "title": self.status.phrase, "status": self.status, "detail": self.detail}
        return orjson.dumps(problem | ({"errors": self.errors} if self.errors is not None else {}))


class Predictor:
    """The ASGI application; ``champion`` gives the model that answers now, ``ready`` whether the pod takes requests."""

    def __init__(
        self,
        pipeline: Pipeline,
        champion: Callable[[], Champion | None],
        ready: Callable[[], bool],
        max_body_bytes: int,
    ) -> None:
        self._champion = champion
        self._limit = max_body_bytes
        self._others = _others(pipeline, champion, ready)
        self._requests = {
            code: REQUESTS.labels(pipeline.name, code) for code in (200, 400, 405, 413, 415, 422, 500, 503)
        }
        self._rows = ROWS.labels(pipeline.name)
        self._seconds = SECONDS.labels(pipeline.name)
        self.draining = False
        """While true, clients are told to close their connections."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != "/predict":
            await self._others(scope, receive, send)
            return
        begun = time.perf_counter()
        try:
            body = await self._read(scope, receive)
            if len(body) <= _INLINE_BYTES:
                status, content_type, answer = 200, _JSON, self._predict(body)
            else:
                status, content_type, answer = 200, _JSON, await asyncio.to_thread(self._predict, body)
            extra: dict[str, str] = {}
        except Exception as error:
            if not isinstance(error, Refusal):
                log.exception("a prediction failed")
                error = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the prediction failed; the log says why")
            status, content_type, answer, extra = error.status, _PROBLEM, error.body(), error.headers
        headers = [(b"content-type", content_type), (b"content-length", str(len(answer)).encode())]
        headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in extra.items()]
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        self._requests[status].inc()
        self._seconds.observe(time.perf_counter() - begun)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] != "POST":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "predictions are asked for by POST", allow="POST")
        headers = dict(scope["headers"])
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _JSON:
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
        length = headers.get(b"content-length", b"")
        body = bytearray()
        more = True
        while more:
            if (length.isdigit() and int(length) > self._limit) or len(body) > self._limit:
                detail = f"the body is larger than {self._limit} bytes: send fewer instances at a time"
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
        return bytes(body)

    def _predict(self, body: bytes) -> bytes:
        champion = self._champion()
        if champion is None:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "no verified model yet: train and promote one", retry_after="5"
            )
        instances, broken = _instances(body)
        rows, errors = [], []
        for number, instance in enumerate(instances):
            try:
                rows.append(champion.checker.check(instance))
            except EventError as error:
                errors += [_error(number, violation) for violation in error.violations]
                if len(errors) >= _MAX_ERRORS:
                    break
        if errors:
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, "instances do not fit the model's features", errors[:_MAX_ERRORS]
            )
        if broken is not None:
            raise broken
        meta = champion.model.meta
        scores = champion.model.scores(to_columns(rows, meta.features))
        names = [label if isinstance(label, str) else json.dumps(label) for label in meta.labels]
        predictions = [
            {"label": meta.labels[best], "scores": dict(zip(names, row, strict=True))}
            for best, row in zip(scores.argmax(axis=1).tolist(), scores.tolist(), strict=True)
        ]
        self._rows.inc(len(rows))
        model = {"name": champion.name, "version": champion.version}
        return orjson.dumps({"predictions": predictions, "model": model})


def _instances(body: bytes) -> tuple[list[dict[str, Any]], Refusal | None]:
    """The rows of a request, and what to answer in case the rows show nothing wrong."""
    broken = None
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        detail = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        broken = Refusal(HTTPStatus.BAD_REQUEST, detail)
        try:
            # Clients write NaN, Infinity and 1e999, which are no JSON numbers; their answer shall name the field.
            request = json.loads(body)
        except (ValueError, RecursionError):
            raise broken from None
    if not isinstance(request, dict) or request.keys() != {"instances"}:
        raise _wrong("", "type", 'the body must be one object {"instances": [...]} and nothing else')
    instances = request["instances"]
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise _wrong("instances", "type", "must be an array of objects, one a row")
    if not 0 < len(instances) <= MAX_INSTANCES:
        raise _wrong("instances", "size", f"must hold between 1 and {MAX_INSTANCES} rows")
    return instances, broken


def _wrong(field: str, rule: str, message: str) -> Refusal:
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message, [{"field": field, "rule": rule, "message": message}])


def _error(instance: int, violation: Violation) -> dict[str, Any]:
    return {
        "instance": instance, "field": violation.field, "rule": violation.rule, "message": violation.message,
    }  # fmt: skip


def _others(pipeline: Pipeline, champion: Callable[[], Champion | None], is_ready: Callable[[], bool]) -> FastAPI:
    # No documentation pages: they load scripts from elsewhere.
    app = FastAPI(title=f"{pipeline.name} predictor", version=levada.__version__, docs_url=None, redoc_url=None)

    @app.get("/version", responses={503: {"description": "No verified model is loaded yet"}})
    async def version() -> dict[str, str]:
        """The model that answers now."""
        now = champion()
        if now is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "no verified model yet", {"retry-after": "5"})
        return {
            "name": now.name,
            "version": now.version,
            "run_id": now.run_id,
            "snapshot": now.snapshot,
            "loaded_at": now.loaded_at,
        }

    @app.get("/livez")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"ok": True}

    @app.get("/readyz", responses={503: {"description": "The promoted model is not loaded yet"}})
    async def ready(response: Response) -> dict[str, bool]:
        """Whether the promoted model is loaded, or none was promoted yet."""
        good = is_ready()
        response.status_code = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        return {"ok": good}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def problem(_: Request, error: HTTPException) -> Response:
        refusal = Refusal(HTTPStatus(error.status_code), str(error.detail))
        return Response(refusal.body(), error.status_code, dict(error.headers or {}), _PROBLEM.decode())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema["paths"]["/predict"] = {"post": _predict_operation(pipeline)}
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _predict_operation(pipeline: Pipeline) -> dict[str, Any]:
    """OpenAPI of ``/predict``, from the declaration."""
    fields = {name: pipeline.fields[name] for name in pipeline.features}
    instance = {
        "type": "object",
        "properties": {
            name: {"type": _TYPES[field.type] if field.required else [_TYPES[field.type], "null"]}
            for name, field in fields.items()
        },
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": False,
    }
    label = pipeline.fields[pipeline.model.label] if pipeline.model is not None else None
    prediction = {
        "type": "object",
        "properties": {
            "label": {"type": _TYPES[label.type]} if label is not None else {},
            "scores": {"type": "object", "additionalProperties": {"type": "number"}},
        },
        "required": ["label", "scores"],
    }
    model = {"type": "object", "properties": {"name": {"type": "string"}, "version": {"type": "string"}}}
    error = {
        "type": "object",
        "properties": {
            "instance": {"type": "integer"},
            "field": {"type": "string"},
            "rule": {"type": "string"},
            "message": {"type": "string"},
        },
        "required": ["field", "rule", "message"],
    }
    problem = {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "errors": {"type": "array", "items": error},
        },
        "required": ["type", "title", "status", "detail"],
    }
    request = {
        "type": "object",
        "properties": {"instances": {"type": "array", "minItems": 1, "maxItems": MAX_INSTANCES, "items": instance}},
        "required": ["instances"],
        "additionalProperties": False,
    }
    answer = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": prediction}, "model": model},
        "required": ["predictions", "model"],
    }
    meanings = {
        400: "The body is not JSON",
        413: "The body is too large",
        415: "The body is not application/json",
        422: "A field is missing, unknown, of another type or not finite; errors name it",
        503: "No verified model is loaded yet",
    }
    responses = {
        str(code): {"description": text, "content": {_PROBLEM.decode(): {"schema": problem}}}
        for code, text in meanings.items()
    }
    return {
        "summary": f"Predict {pipeline.model.label if pipeline.model else 'the label'} from raw features",
        "operationId": "predict",
        "requestBody": {"required": True, "content": {_JSON.decode(): {"schema": request}}},
        "responses": {
            "200": {
                "description": "One prediction an instance",
                "content": {_JSON.decode(): {"schema": answer}},
            },
            **responses,
        },
    }
