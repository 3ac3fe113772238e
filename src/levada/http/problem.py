"""Refusals as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson

from levada.event import Violation

MEDIA_TYPE: Final = b"application/problem+json"
_MAX_ERRORS: Final = 100
_MAX_NAME: Final = 64


class Problem(Exception):
    """A request, or a line of one, that is refused; raised anywhere, answered in one place."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Violation] = (),
        event_id: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.event_id = event_id
        self.retry_after = retry_after
        """Seconds after which the same may succeed."""
        self.headers = {**(headers or {}), **({"Retry-After": str(retry_after)} if retry_after is not None else {})}

    def errors_json(self) -> list[dict[str, str]]:
        """The first of the violations; a client may send as many unknown fields, and names as long, as it likes."""
        return [
            {"field": error.field[:_MAX_NAME], "rule": error.rule, "message": error.message}
            for error in self.errors[:_MAX_ERRORS]
        ]

    def body(self) -> bytes:
        """The answer to the client."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "errors": self.errors_json(),
        }
        if self.event_id is not None:
            body["event_id"] = self.event_id
        return orjson.dumps(body)

    def receipt(self) -> dict[str, Any]:
        """The same for one line of a batch."""
        receipt: dict[str, Any] = {"status": self.status, "detail": self.detail}
        if self.event_id is not None:
            receipt["event_id"] = self.event_id
        if self.errors:
            receipt["errors"] = self.errors_json()
        return receipt


def unavailable(detail: str, *, retry_after: int, event_id: str | None = None) -> Problem:
    """503: the same request may succeed later. With an event id the event may have landed: repeat it under that id."""
    return Problem(503, detail, event_id=event_id, retry_after=retry_after)
