"""The predictor's HTTP interface.

Predictions are answered by bare functions, most of them past ASGI (:mod:`levada.serving.direct`), because routing and
validation by a framework cost several times what the model does; everything else is FastAPI's.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs

import orjson

from levada.http.connection import Exchange
from levada.http.keys import ApiKeys
from levada.http.problem import MEDIA_TYPE, Problem, unavailable
from levada.http.request import JSON, Bodies, check_allows, headers_of, key_of, media_type_of
from levada.http.server import Receive, Scope, Send
from levada.pipeline import Pipeline
from levada.serving import v2
from levada.serving.direct import INLINE_BYTES, Direct, Mirror, Name, failed, named
from levada.serving.forms import Row, wrong
from levada.serving.loaded import Loaded, Outcomes, Scores, Write
from levada.serving.metrics import Counts

if TYPE_CHECKING:
    from fastapi import FastAPI

_TOGETHER_BYTES: Final = 67_108_864
_TAKEN: Final = (JSON,)
_INFER: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_RETRY_SECONDS: Final = 5

Headers = Sequence[tuple[bytes, bytes]]


class Predictor:
    """The application of one pipeline's predictor, by ASGI and :meth:`direct`."""

    def __init__(
        self,
        pipeline: Pipeline,
        champion: Callable[[], Loaded | None],
        ready: Callable[[], bool],
        max_body_bytes: int,
        *,
        keys: Callable[[], ApiKeys] | None = None,
        name: Name | None = None,
        mirror: Mirror = lambda *_: None,
    ) -> None:
        """Answer for one pipeline.

        Args:
            pipeline: the declaration.
            champion: gives the model that answers now.
            ready: whether the pod takes requests.
            max_body_bytes: a larger body is refused.
            keys: gives the API keys; without them nobody is asked for one.
            name: names requests whose predictions are kept; without it none are.
            mirror: is shown what was answered.
        """
        self._pipeline = pipeline
        self._champion = champion
        self._keys = keys
        self._kept = name is not None
        self._name = name or (lambda *_: b"")
        self._mirror = mirror
        self._counts = Counts(pipeline.name)
        self._max_body_bytes = max_body_bytes
        self._bodies = Bodies(max(_TOGETHER_BYTES, 2 * max_body_bytes))
        self._ready = ready
        self._admin: FastAPI | None = None
        # One at a time: to read a large body takes many times its size.
        self._large = ThreadPoolExecutor(1, "large-body")
        reads = {
            b"/predict": lambda model, body: (model.form.plain(body), Loaded.write),
            b"/predict?probabilities=true": lambda model, body: (model.form.plain(body), Loaded.write_with_scores),
            f"/v2/models/{pipeline.name}/infer".encode(): v2.read,
        }
        self._direct = Direct(champion, self._admit, reads, self._counts, self._name, mirror)
        self.draining = False
        """While true, clients are told to close their connections."""

    def direct(self, exchange: Exchange) -> bool:
        """Take a prediction that nothing speaks against; what is wrong with another is told by ASGI."""
        return not self.draining and self._direct.take(exchange)

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was read."""
        self._counts.answered(status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        infer = _INFER.fullmatch(scope["path"])
        model = self._champion()
        extra = _headers(model.lines if model is not None else f"levada-model: {self._pipeline.name}\r\n".encode())
        if self.draining:
            extra.append((b"connection", b"close"))
        if infer is None and scope["path"] != "/predict" and scope["http_version"] in ("1.0", "1.1"):
            await self._others(scope, receive, send, extra)
            return
        begin = time.perf_counter()
        try:
            body, name = await self._predict(scope, receive, model, infer)
            status, media_type = 200, JSON
            extra += _headers(named(name)) if name else []
        except Exception as error:
            problem = error if isinstance(error, Problem) else failed(error)
            status, media_type, body = problem.status, MEDIA_TYPE, problem.body()
            extra += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
            if infer is not None:  # the protocol's own word for it
                body = orjson.dumps({"error": problem.detail, **orjson.loads(body)})
        headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._counts.answered(status)
        self._counts.seconds.observe(time.perf_counter() - begin)

    async def _others(self, scope: Scope, receive: Receive, send: Send, extra: list[Any]) -> None:
        async def with_model(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        if self._admin is None:
            self._admin = await asyncio.to_thread(self._load_admin)
        await self._admin(scope, receive, with_model)

    def _load_admin(self) -> FastAPI:
        # FastAPI takes longer to load than all else here together, and many predictors are never asked by it.
        from levada.serving.admin import admin

        return admin(self._pipeline, self._champion, self._ready, secured=self._keys is not None, kept=self._kept)

    def _admit(self, given: Headers, *, host: bool = True) -> dict[bytes, bytes]:
        """The headers of a request that may be answered."""
        headers = headers_of(given, host=host)
        if self._keys is not None:
            check_allows(key_of(self._keys(), headers), self._pipeline.name)
        media_type_of(headers, _TAKEN, "send the body as Content-Type: application/json")
        return headers

    def _check_size(self, size: int, _: bytes) -> None:
        if size > self._max_body_bytes:
            raise Problem(413, f"a body may have {self._max_body_bytes} bytes: send fewer instances at a time")

    async def _predict(
        self, scope: Scope, receive: Receive, model: Loaded | None, infer: re.Match[str] | None
    ) -> tuple[bytes, bytes]:
        """The answer, and the name of the request."""
        if scope["http_version"] not in ("1.0", "1.1"):
            raise Problem(400, "this is not HTTP/1.1")
        if scope["method"] != "POST":
            raise Problem(405, "predictions are asked for by POST", headers={"Allow": "POST"})
        headers = self._admit(scope["headers"], host=scope["http_version"] == "1.1")
        if infer is not None and infer[1] != self._pipeline.name:
            raise Problem(404, f"the only model here is {self._pipeline.name}")
        wanted = _probabilities(scope["query_string"]) if infer is None else False
        body = await self._bodies.read(headers, receive, self._check_size)
        try:
            if model is None:
                raise unavailable("no verified model yet: train and promote one", retry_after=_RETRY_SECONDS)
            if infer is not None and infer[2] not in (None, model.version):
                raise Problem(404, f"version {model.version} of {model.name} serves, and no other")
            if len(body) <= INLINE_BYTES:
                answer, found = _answer(model, body, infer is not None, wanted)
            else:
                run = asyncio.get_running_loop().run_in_executor
                answer, found = await run(self._large, _answer, model, body, infer is not None, wanted)
        finally:
            self._bodies.release(body)
        name = self._name(headers, len(found.rows))
        self._counts.scored(len(found.rows))
        self._mirror(model, *found, [(name, len(found.rows))], len(body))
        return answer, name


def _headers(lines: bytes) -> list[Any]:
    return [tuple(line.split(b": ", 1)) for line in lines.split(b"\r\n")[:-1]]


class _Found(NamedTuple):
    rows: Sequence[Row]
    outcomes: Outcomes
    scores: Scores


def _answer(model: Loaded, body: bytes, tensors: bool, probabilities: bool) -> tuple[bytes, _Found]:
    """The answer to a body, and what was asked and found."""
    rows: Sequence[Row]
    write: Write
    if tensors:
        rows, write = v2.read(model, body)
    else:
        rows, write = model.form.rows(body), Loaded.write_with_scores if probabilities else Loaded.write
    outcomes, scores = model.score(rows)
    return write(model, outcomes, scores), _Found(rows, outcomes, scores)


def _probabilities(query: bytes) -> bool:
    """Whether the probability of each label is wanted."""
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("probabilities", ["false"])
    if given not in (["true"], ["false"]):
        raise wrong("probabilities", "type", "must be true or false")
    return given == ["true"]
