"""The least that ASGI can answer."""

from __future__ import annotations

from typing import Any


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer anything with a few bytes of JSON."""
    if scope["type"] == "http":
        await receive()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})
