"""What a request says: its headers, who sends it, and its body within bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from levada.http import keys
from levada.http.keys import ApiKeys
from levada.http.problem import Problem, unavailable

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
JSON: Final = b"application/json"
_ONCE: Final = frozenset((b"content-type", b"content-encoding", b"host"))


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


def authorize(known: ApiKeys, headers: dict[bytes, bytes], pipeline: str) -> None:
    """Let those pass who have a key for a pipeline.

    Raises:
        Problem: 401 without a known key, 403 with one for other pipelines.
    """
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    key = keys.find(known, token.strip()) if scheme.lower() == b"bearer" else None
    if key is None:
        asked = {"WWW-Authenticate": "Bearer"}
        raise Problem(401, "send one known API key as Authorization: Bearer <key>", headers=asked)
    if not key.allows(pipeline):
        raise Problem(403, f"this API key is not for pipeline {pipeline}")


def check_json(headers: dict[bytes, bytes]) -> None:
    """Refuse a body that is not plain JSON.

    Raises:
        Problem: 415.
    """
    media_type = headers.get(b"content-type", b"")
    if media_type != JSON and media_type.partition(b";")[0].strip().lower() != JSON:
        raise Problem(415, "send the body as Content-Type: application/json")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem(415, "send the body without Content-Encoding")


class Bodies:
    """Bodies that are being read or answered, within the memory for each and for all together."""

    def __init__(self, limit: int, together: int, advice: str) -> None:
        """Allow ``limit`` bytes a body and ``together`` bytes at once; ``advice`` tells who exceeds the first."""
        self.limit = limit
        self._together = together
        self._advice = advice
        self._held = 0

    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """One whole body, which counts as held until it is given to :meth:`release`.

        Raises:
            Problem: 400 for one that breaks off, 413 for one that is too large, 503 while there are too many.
        """
        announced = headers.get(b"content-length", b"")
        self._check(int(announced) if announced.isdigit() else 0)
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
                    self._check(size)
        except BaseException:
            self._held -= size
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, body: bytes) -> None:
        """Forget a body that was read."""
        self._held -= len(body)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise Problem(413, f"a body may have {self.limit} bytes: {self._advice}")
        if self._held > self._together:
            raise unavailable("too many large requests at once", retry_after=1)
