"""A visitor of the order page, without a browser."""

from __future__ import annotations

import re
from html import unescape
from http.cookies import SimpleCookie

import httpx


class Visitor:
    """A browser's worth of HTTP: cookies also where they are Secure, and the form's hidden fields."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=20)
        self._cookies: dict[str, str] = {}
        self.hidden: dict[str, str] = {}

    def close(self) -> None:
        self._client.close()

    def get(self, path: str = "/") -> httpx.Response:
        return self._seen(self._client.get(path, headers=self._headers()))

    def post(self, order: dict[str, str], **hidden: str) -> httpx.Response:
        return self._seen(self._client.post("/", data={**self.hidden, **hidden, **order}, headers=self._headers()))

    def _headers(self) -> dict[str, str]:
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}

    def _seen(self, answer: httpx.Response) -> httpx.Response:
        for line in answer.headers.get_list("set-cookie"):
            self._cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        inputs = re.findall(r"<input [^>]*type=\"hidden\"[^>]*>", answer.text)
        if found := {_attribute(tag, "name"): _attribute(tag, "value") for tag in inputs}:
            self.hidden = found
        return answer


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf'{name}="([^"]*)"', tag)
    assert found
    return unescape(found[1])
