"""The description as a page to read and try: Swagger UI out of the image, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Final

from fastapi import FastAPI, Response

_UI: Final = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
# Relative, so that it works below any path of an Ingress. The validator would show the description to a stranger.
_START: Final = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", validatorUrl: null})\n'
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Swagger UI has its pictures in its style, and styles in its elements.
_POLICY: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}


def add_docs(app: FastAPI) -> None:
    """Serve ``/docs``."""

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return Response(_PAGE.format(title=escape(app.title)), headers=_POLICY, media_type="text/html")

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(_START, media_type="text/javascript")

    for name, media_type in _UI.items():
        app.add_api_route(f"/docs/{name}", _file(name, media_type), include_in_schema=False)


def _file(name: str, media_type: str) -> Callable[[], Response]:
    def read() -> Response:  # by a thread; few ask for it, so it is not kept in memory
        from importlib.resources import files

        return Response((files("fastapi_swagger") / "resources" / name).read_bytes(), media_type=media_type)

    return read
