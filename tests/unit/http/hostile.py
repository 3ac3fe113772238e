"""Hostile HTTP for any of our servers: what may come at a port, and how it must be answered.

What a case may be answered is written as the statuses in their order; a connection that ends without one is "".
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

Cases = dict[str, tuple[bytes, str]]
"""What is sent and how it may be answered, by what it is."""
CLOSED = ""
HEAD_SECONDS, BODY_SECONDS, CONNECTIONS = 5, 3, 200
"""What the servers that meet these allow."""
MEMORY_MIB = 16
"""What all of it may cost them."""


@dataclass(frozen=True)
class Target:
    """Where one may post something good."""

    path: str
    good: bytes
    """A body that is answered"""
    ok: str
    """with this status"""
    key: str
    """for who has this API key."""

    def head(self, *lines: str, first: str | None = None, **replaced: str | None) -> bytes:
        """A request's head; a header is replaced by its name, or left out by None."""
        headers: dict[str, str | None] = {
            "Host": "h",
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Content-Length": str(len(self.good)),
        }
        headers |= {name.replace("_", "-"): value for name, value in replaced.items()}
        kept = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        return "\r\n".join([first or f"POST {self.path} HTTP/1.1", *kept, *lines, "", ""]).encode("latin-1")

    def post(self, body: bytes, **replaced: str | None) -> bytes:
        return self.head(Content_Length=str(len(body)), **replaced) + body

    def chunked(self, *chunks: bytes, end: bytes = b"0\r\n\r\n", te: str = "chunked", **replaced: str | None) -> bytes:
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
        return self.head(f"Transfer-Encoding: {te}", **{"Content_Length": None, **replaced}) + body

    @property
    def one(self) -> bytes:
        """One good request."""
        return self.head() + self.good

    def bodies(self) -> Cases:
        """What is no JSON at all."""
        post = self.post
        return {
            "empty body": (post(b""), "400"),
            "blank body": (post(b"  \n "), "400"),
            "deep array": (post(b"[" * 100_000), "400"),
            "bad UTF-8": (post(b'{"a": "\xff\xfe"}'), "400"),
            "overlong UTF-8": (post(b'{"a": "\xc0\xaf"}'), "400"),
            "half a surrogate": (post(b'{"a": "\\ud800"}'), "400"),
            "UTF-16": (post('{"a": 1}'.encode("utf-16")), "400"),
            "byte order mark": (post(b"\xef\xbb\xbf" + self.good), "400"),
            "behind the object": (post(self.good + self.good), "400"),
            "comments": (post(b'{"a": 1, /* */ "b": "u"}'), "400"),
            "single quotes": (post(b"{'a': 1}"), "400"),
            "a pickle": (post(b"\x80\x04\x95\x0b\x00\x00\x00"), "400"),
        }

    def framing(self) -> Cases:
        """What is wrong, or odd, whatever the body means."""
        head, chunked, good, one, ok = self.head, self.chunked, self.good, self.one, self.ok
        path, size, key = self.path, len(self.good), self.key
        return {
            # Headers
            "no host": (head(Host=None) + good, "400"),
            "two hosts": (head("Host: other") + good, "400"),
            "no content type": (head(Content_Type=None) + good, "415"),
            "a form": (head(Content_Type="application/x-www-form-urlencoded") + good, "415"),
            "two content types": (head("Content-Type: text/plain") + good, "400"),
            "gzip": (head("Content-Encoding: gzip") + good, "415"),
            "no key": (head(Authorization=None) + good, "401"),
            "two keys": (head(f"Authorization: Bearer {key}") + good, "401"),
            "key in the query": (head(first=f"POST {path}?key={key} HTTP/1.1", Authorization=None) + good, "401"),
            "a key of 8,000 letters": (head(Authorization="Bearer " + "x" * 8_000) + good, "401"),
            "a key that is not ASCII": (head(Authorization="Bearer \xff\xfe") + good, "401"),
            "a NUL in a header": (head("X-A: a\x00b") + good, "400"),
            "a space before the colon": (head("X-A : b") + good, "400"),
            "a folded header": (head("X-A: a", " b") + good, f"{ok} 400"),
            "a header without a name": (head(": b") + good, "400"),
            "one header of 100 KB": (head("X-A: " + "x" * 100_000) + good, "431"),
            "200 headers": (head(*(f"X-{n}: {n}" for n in range(200))) + good, "431"),
            "a target of 100 KB": (head(first=f"POST /{'x' * 100_000} HTTP/1.1") + good, "431"),
            "one header that never ends": (b"POST / HTTP/1.1\r\nX-A: " + b"x" * 2_000_000, "431"),
            # Methods and targets
            "GET": (head(first=f"GET {path} HTTP/1.1") + good, "405"),
            "HEAD": (head(first=f"HEAD {path} HTTP/1.1", Content_Length="0"), "405"),
            "PUT": (head(first=f"PUT {path} HTTP/1.1") + good, "405"),
            "OPTIONS": (head(first=f"OPTIONS {path} HTTP/1.1") + good, "405"),
            "TRACE": (head(first=f"TRACE {path} HTTP/1.1") + good, "405"),
            "CONNECT": (head(first="CONNECT h:80 HTTP/1.1") + good, "400 404 405"),
            "PRI": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
            "a made-up method": (head(first="LEVADA / HTTP/1.1") + good, "400"),
            "a lower-case method": (head(first=f"post {path} HTTP/1.1") + good, "400"),
            "the root": (head(first="POST / HTTP/1.1") + good, "404"),
            "star": (head(first="OPTIONS * HTTP/1.1") + good, "400 404 405"),
            "a whole URL": (head(first=f"POST http://h{path} HTTP/1.1") + good, ok),
            # Versions and protocols
            "HTTP/0.9": (b"GET /\r\n\r\n", "400"),
            "HTTP/1.0": (head(first=f"POST {path} HTTP/1.0", Host=None) + good, ok),
            "HTTP/2.0": (head(first=f"POST {path} HTTP/2.0") + good, "400"),
            "HTTP/9.9": (head(first=f"POST {path} HTTP/9.9") + good, "400"),
            "TLS": (bytes.fromhex("16030100c8010000c40303") + b"\x00" * 200, "400"),
            "noise": (bytes(range(256)) * 8, "400"),
            "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "400"),
            "bare line feeds": (one.replace(b"\r\n", b"\n"), f"{ok} 400"),
            "upgrade to a web socket": (head("Connection: Upgrade", "Upgrade: websocket") + good, f"{ok} 400"),
            "upgrade to h2c": (head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c") + good, f"{ok} 400"),
            # Bodies and how they are framed
            "chunked": (chunked(good[:5], good[5:]), ok),
            "a byte a chunk": (chunked(*(bytes([byte]) for byte in good)), ok),
            "chunk extension": (chunked(end=b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (size, good)), ok),
            "trailers that authorize": (
                chunked(good, end=f"0\r\nAuthorization: Bearer {key}\r\n\r\n".encode(), Authorization=None),
                "401",
            ),
            "trailers without end": (chunked(good, end=b"0\r\n" + b"X-A: b\r\n" * 10_000), "400 431"),
            "a chunk size that is none": (chunked(end=b"xyz\r\n" + good + b"\r\n0\r\n\r\n"), "400"),
            "a negative chunk size": (chunked(end=b"-1\r\n" + good + b"\r\n0\r\n\r\n"), "400"),
            "a chunk size of 64 bits and more": (chunked(end=b"fffffffffffffffff\r\n" + good), "400"),
            "a chunk shorter than it says": (chunked(end=b"5\r\n" + good + b"\r\n0\r\n\r\n"), "400"),
            "length and chunks": (chunked(good, Content_Length=str(size)), "400"),
            "chunks and a length of 0": (chunked(good, Content_Length="0") + one, "400"),
            "xchunked": (chunked(good, te="xchunked"), "400"),
            "chunked, identity": (chunked(good, te="chunked, identity"), "400"),
            "chunked twice": (chunked(good, te="chunked, chunked"), f"{ok} 400"),
            "a hidden chunked": (head("Transfer-Encoding:\x0bchunked", Content_Length=None) + b"0\r\n\r\n", "400"),
            "two lengths": (head("Content-Length: 5") + good, "400"),
            "two equal lengths": (head(f"Content-Length: {size}") + good, "400"),
            "a list of lengths": (head(Content_Length=f"{size}, {size}") + good, "400"),
            "a negative length": (head(Content_Length="-1") + good, "400"),
            "a length with a plus": (head(Content_Length=f"+{size}") + good, "400"),
            "a length in hex": (head(Content_Length=hex(size)) + good, "400"),
            "a length of 30 digits": (head(Content_Length="9" * 30) + good, "400"),
            "a length of an exbibyte": (head(Content_Length=str(2**60)) + good, "413"),
            "expect": (head("Expect: 100-continue") + good, f"100,{ok}"),
            "expect, and refused": (head("Expect: 100-continue", Authorization=None), "401"),
            "expect something else": (head("Expect: 200-maybe") + good, f"{ok} 417"),
            # One behind the other
            "two": (one * 2, f"{ok},{ok}"),
            "good, bad, good": (one + self.post(b"{}") + one, f"{ok},422,{ok}"),
            "good, then noise": (one + b"\x00\xff" * 50, ok),
            "good, then a smuggled one": (head("Connection: close") + good + one, ok),
            "more than the length": (head(Content_Length=str(size - 1)) + good, "400"),
            "line feeds first": (b"\r\n" * 20 + one, ok),
            "60 at once": (one * 60, ",".join([ok] * 60)),
            "nothing": (b"", CLOSED),
        }


def allowed(expected: str) -> set[tuple[str, ...]]:
    """The statuses, in their order, of each way in which a case may be answered."""
    return {tuple(filter(None, option.split(","))) for option in expected.split(" ")}


def statuses(answer: bytes) -> list[str]:
    return re.findall(r"HTTP/1\.1 (\d{3}) ", answer.decode("latin-1"))


def answers(received: bytes) -> list[tuple[int, bytes, bytes]]:
    """Status, head and body of each answer."""
    found = []
    for answer in re.split(rb"(?=HTTP/1\.1 \d{3} )", received):
        if answer.startswith(b"HTTP/1.1 "):
            top, _, body = answer.partition(b"\r\n\r\n")
            found.append((int(answer[9:12]), top, body))
    return found


def talk(port: int, request: bytes, *, seconds: float = 10) -> tuple[list[str], bytes]:
    """Send, read until the other side is quiet or closes; what came."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        sender = threading.Thread(target=_send, args=(connection, request))
        sender.start()
        try:
            while chunk := connection.recv(65_536):
                received += chunk
        except ConnectionResetError:
            pass
        sender.join()
    return statuses(received), received


def _send(connection: socket.socket, request: bytes) -> None:
    try:
        connection.sendall(request)
        time.sleep(0.05)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return


def drip(port: int, begin: bytes, byte: bytes, pause: float) -> tuple[list[str], float]:
    """Send byte by byte until the connection ends; the answer, and how long that took."""
    received, started = b"", time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(begin)
        connection.settimeout(pause)
        while time.monotonic() - started < 20:
            try:
                connection.sendall(byte)
                chunk = connection.recv(65_536)
                received += chunk
                if not chunk:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return statuses(received), time.monotonic() - started


def resident(pid: int, which: str = "VmRSS") -> float:
    """Memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


@dataclass(frozen=True)
class Victim:
    """A process that all of this is sent to, while others ask it for something good."""

    target: Target
    port: int
    pid: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def healthy(self, client: httpx.Client) -> bool:
        headers = {"Authorization": f"Bearer {self.target.key}", "Content-Type": "application/json"}
        answer = client.post(f"{self.url}{self.target.path}", content=self.target.good, headers=headers)
        return answer.status_code == int(self.target.ok)

    def check_answers(self, cases: Cases) -> None:
        """Every case is answered as meant and soon; others are served after each; nothing is left in log or memory."""
        wrong = {}
        with httpx.Client() as client:
            before = resident(self.pid)
            for name, (request, expected) in cases.items():
                begin = time.monotonic()
                found, raw = talk(self.port, request)
                if tuple(found) not in allowed(expected) or time.monotonic() - begin > 3:
                    wrong[name] = (found, expected, time.monotonic() - begin, raw[:300])
                assert self.healthy(client), name
            grown = resident(self.pid, "VmHWM") - before
        assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())
        print(f"{len(cases)} cases, memory +{grown:.1f} MiB at most")
        assert grown <= MEMORY_MIB, grown
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert "failed" not in log, log

    def check_refusals(self, cases: Cases) -> None:
        """Every refusal is a problem document."""
        for name, (request, _) in cases.items():
            if name == "HEAD":
                continue
            _, raw = talk(self.port, request)
            for status, top, body in answers(raw):
                if 400 <= status < 500:
                    assert b"application/problem+json" in top, name
                    assert json.loads(body)["status"] == status, name

    def check_100_mb(self, *, chunked: bool) -> None:
        """A client that sends that is told, and let go before it has sent all of it."""
        before = resident(self.pid)
        blocks = [b"x" * 1_000_000] * 100
        request = self.target.chunked(*blocks) if chunked else self.target.post(b"".join(blocks))
        begin = time.monotonic()
        found, _ = talk(self.port, request, seconds=20)
        assert found in (["413"], []), found
        assert time.monotonic() - begin < 5, time.monotonic() - begin
        with httpx.Client() as client:
            assert self.healthy(client)
        grown = resident(self.pid, "VmHWM") - before
        assert grown <= MEMORY_MIB, grown

    def check_slow(self) -> None:
        """Clients that drip are let go in time while others are served."""
        path, head = self.target.path.encode(), self.target.head
        slow: dict[str, tuple[bytes, bytes, float]] = {  # what they begin with, repeat, and the seconds they get
            "headers": (b"POST %b HTTP/1.1\r\nX-A: " % path, b"x", HEAD_SECONDS),
            "headers, many": (b"POST %b HTTP/1.1\r\n" % path, b"X-A: b\r\n", HEAD_SECONDS),
            "line feeds": (b"\r\n", b"\r\n", HEAD_SECONDS),
            "nothing at all": (b"", b"", HEAD_SECONDS),
            "body": (head(Content_Length="1000"), b" ", BODY_SECONDS),
            "chunks": (head("Transfer-Encoding: chunked", Content_Length=None), b"1\r\nx\r\n", BODY_SECONDS),
            "the second request": (self.target.one + b"POST /", b"x", HEAD_SECONDS),
        }
        found: dict[str, tuple[list[str], float]] = {}
        threads = [
            threading.Thread(target=lambda name=name, case=case: found.update({name: drip(self.port, *case[:2], 0.2)}))
            for name, case in slow.items()
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        with httpx.Client() as client:
            while any(thread.is_alive() for thread in threads):
                assert self.healthy(client)
                time.sleep(0.05)
        for name, (_, _, seconds) in slow.items():
            told, taken = found[name]
            assert told[-1:] == ["408"], (name, told)
            assert seconds - 0.5 < taken < seconds + 1, (name, taken)
        assert found["the second request"][0] == [self.target.ok, "408"]

    def check_connections(self) -> None:
        """One connection too many is told so; when some have gone, others are served."""
        time.sleep(1)
        opened = [socket.create_connection(("127.0.0.1", self.port)) for _ in range(CONNECTIONS + 30)]
        try:
            time.sleep(0.2)
            answer = opened[-1].recv(1000)
            assert statuses(answer) == ["503"], answer
            assert b"Retry-After: 1" in answer, answer
        finally:
            for connection in opened:
                connection.close()
        deadline = time.monotonic() + 5
        with httpx.Client() as client:
            while not self.healthy(client):
                assert time.monotonic() < deadline
                time.sleep(0.2)
