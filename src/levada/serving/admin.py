"""What the predictor tells of itself, by FastAPI: the model that answers, probes, metrics, its description."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import levada
from levada.http.problem import MEDIA_TYPE, Problem
from levada.pipeline import Pipeline
from levada.serving import openapi, v2
from levada.serving.docs import add_docs
from levada.serving.loaded import Loaded

_NO_MODEL: dict[int | str, dict[str, Any]] = {503: {"description": "No verified model is loaded yet"}}
_NOT_HERE: dict[int | str, dict[str, Any]] = {404: {"description": "Another model or version"}, **_NO_MODEL}


def admin(
    pipeline: Pipeline,
    champion: Callable[[], Loaded | None],
    is_ready: Callable[[], bool],
    *,
    secured: bool,
    kept: bool,
) -> FastAPI:
    """Everything but the predictions.

    Args:
        pipeline: the declaration.
        champion: gives the model that answers now.
        is_ready: whether the pod takes requests.
        secured: whether predictions need an API key, as the description then says.
        kept: whether they are kept under event ids, as it says too.
    """
    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title=f"{pipeline.name} predictor", version=levada.__version__, docs_url=None, redoc_url=None)

    def serving(name: str = pipeline.name, version: str | None = None) -> Loaded:
        if name != pipeline.name:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"the only model here is {pipeline.name}")
        now = champion()
        if now is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "no verified model yet", {"retry-after": "5"})
        if version not in (None, now.version):
            raise HTTPException(HTTPStatus.NOT_FOUND, f"version {now.version} of {name} serves, and no other")
        return now

    @app.get("/version", responses=_NO_MODEL)
    async def version() -> dict[str, Any]:
        """The model that answers now, with its features in the order of positional input."""
        return serving().about()

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

    @app.get("/v2")
    async def v2_server() -> dict[str, Any]:
        """The server, as the Open Inference Protocol describes one."""
        return {"name": "levada", "version": levada.__version__, "extensions": []}

    @app.get("/v2/health/live")
    async def v2_live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @app.get("/v2/health/ready", responses=_NO_MODEL)
    async def v2_ready() -> dict[str, bool]:
        """Whether the model answers."""
        serving()
        return {"ready": True}

    @app.get("/v2/models/{name}", responses=_NOT_HERE)
    @app.get("/v2/models/{name}/versions/{version}", responses=_NOT_HERE)
    async def v2_model(name: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of the model."""
        return v2.metadata(serving(name, version))

    @app.get("/v2/models/{name}/ready", responses=_NOT_HERE)
    @app.get("/v2/models/{name}/versions/{version}/ready", responses=_NOT_HERE)
    async def v2_model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Whether the model answers."""
        return {"name": serving(name, version).name, "ready": True}

    @app.exception_handler(HTTPException)
    async def problem(request: Request, error: HTTPException) -> Response:
        told = Problem(error.status_code, str(error.detail))
        return Response(told.body(), error.status_code, dict(error.headers or {}), MEDIA_TYPE.decode())

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = openapi.with_predictions(document, pipeline, secured=secured, kept=kept)
        return app.openapi_schema

    app.openapi = description  # type: ignore[method-assign]
    add_docs(app)
    return app
