"""Refusals as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from levada.event import Violation


class Problem(Exception):
    """A request that is refused; raised anywhere, answered in one place."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Violation] = (),
        event_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.event_id = event_id
        self.headers = headers

    def response(self) -> Response:
        """The answer to the client."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "errors": [{"field": error.field, "rule": error.rule, "message": error.message} for error in self.errors],
        }
        if self.event_id is not None:
            body["event_id"] = self.event_id
        return Response(orjson.dumps(body), self.status, self.headers, "application/problem+json")


def unavailable(detail: str, *, retry_after: int, event_id: str | None = None) -> Problem:
    """503: the same request may succeed later. With an event id the event may have landed: repeat it under that id."""
    return Problem(503, detail, event_id=event_id, headers={"Retry-After": str(retry_after)})
