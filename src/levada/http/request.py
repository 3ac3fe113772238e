"""What a request says: its headers, who sends it, and its body within bounds."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any, Final

from levada.event import MAX_EVENT_ID, Violation
from levada.http import keys
from levada.http.keys import ApiKey, ApiKeys
from levada.http.problem import Problem, unavailable

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
JSON: Final = b"application/json"
MAX_BATCH_KEY: Final = 50
"""Longest Idempotency-Key of a request for several events: the id of the n-th, from 1, is ``<key>-<n>``."""
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]+")
_ONCE: Final = frozenset((b"content-type", b"content-encoding", b"host", b"idempotency-key"))


def headers_of(given: Sequence[tuple[bytes, bytes]], *, host: bool = True) -> dict[bytes, bytes]:
    """The headers by name; one that decides something may come once.

    Args:
        given: names in lower case, and values.
        host: whether there must be a ``host``, as in HTTP/1.1.

    Raises:
        Problem: 400.
    """
    found: dict[bytes, bytes] = {}
    for name, value in given:
        if name in found:
            if name in _ONCE:
                raise Problem(400, f"send the header {name.decode()} once")
            value = b"" if name == b"authorization" else value  # of two keys, neither
        found[name] = value
    if host and b"host" not in found:
        raise Problem(400, "send the header host")
    return found


def key_of(known: ApiKeys, headers: dict[bytes, bytes]) -> ApiKey:
    """The key that a request is sent with.

    Raises:
        Problem: 401 without a known one.
    """
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    key = keys.find(known, token.strip()) if scheme.lower() == b"bearer" else None
    if key is None:
        asked = {"WWW-Authenticate": "Bearer"}
        raise Problem(401, "send one known API key as Authorization: Bearer <key>", headers=asked)
    return key


def check_allows(key: ApiKey, pipeline: str) -> None:
    """Let those pass whose key is for a pipeline.

    Raises:
        Problem: 403 with one for other pipelines.
    """
    if not key.allows(pipeline):
        raise Problem(403, f"this API key is not for pipeline {pipeline}")


def media_type_of(headers: dict[bytes, bytes], taken: Collection[bytes], advice: str) -> bytes:
    """The media type of a body, which is one of those that are ``taken``; ``advice`` tells who sends another.

    Raises:
        Problem: 415, also for a body that is encoded.
    """
    media_type = headers.get(b"content-type", b"")
    if media_type not in taken:
        media_type = media_type.partition(b";")[0].strip().lower()
        if media_type not in taken:
            raise Problem(415, advice)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem(415, "send the body without Content-Encoding")
    return media_type


def event_key_of(headers: dict[bytes, bytes], limit: int = MAX_EVENT_ID) -> bytes | None:
    """The Idempotency-Key, which is the event's id, or what the ids of several are made from; None without one.

    Raises:
        Problem: 400, it cannot be that.
    """
    key = headers.get(b"idempotency-key")
    if key is not None and (len(key) > limit or _PRINTABLE.fullmatch(key) is None):
        message = f"must be 1 to {limit} printable ASCII characters without spaces"
        rule = f"[!-~]{{1,{limit}}}"
        raise Problem(400, f"Idempotency-Key {message}", errors=[Violation("Idempotency-Key", rule, message)])
    return key


class Bodies:
    """Bodies that are being read or answered, within the memory for all together."""

    def __init__(self, together: int) -> None:
        """Allow ``together`` bytes at once."""
        self._together = together
        self._held = 0

    async def read(self, headers: dict[bytes, bytes], receive: Receive, check: Callable[[int, bytes], None]) -> bytes:
        """One whole body, which counts as held until it is given to :meth:`release`.

        Args:
            headers: of the request.
            receive: as ASGI gives it.
            check: raises for bytes that are too many; also given how the body begins, or nothing if they are only
                announced.

        Raises:
            Problem: 400 for one that breaks off, 503 while there are too many, and what ``check`` raises.
        """
        announced = headers.get(b"content-length", b"")
        check(int(announced) if announced.isdigit() else 0, b"")
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "the body did not come whole")
                chunk, more = message["body"], message["more_body"]
                if chunk:
                    chunks.append(chunk)
                    size += len(chunk)
                    self._held += len(chunk)
                    check(size, chunks[0])
                    if self._held > self._together:
                        raise unavailable("too many large requests at once", retry_after=1)
        except BaseException:
            self._held -= size
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def room(self, body: bytes) -> bool:
        """Whether a body that came whole may be held, too."""
        return self._held + len(body) <= self._together

    def hold(self, body: bytes) -> None:
        """Count a body that came whole, until it is given to :meth:`release`."""
        self._held += len(body)

    def release(self, body: bytes) -> None:
        """Forget a body."""
        self._held -= len(body)
