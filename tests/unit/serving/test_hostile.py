"""Hostile requests against the real process: every answer is meant, nothing hangs, memory stays, others go on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.unit.http.hostile import Target, allowed, answers, drip, resident, statuses, talk

from .conftest import FakeMlflow, mlflow_server, model_file
from .predicting import API_KEY, HEADERS, Process

GOOD = b'{"instances": [{"x": 1.5, "n": 1}]}'
KINDS = {"x": "FP64", "n": "INT64"}
TENSORS = json.dumps(
    {"inputs": [{"name": name, "shape": [1], "datatype": kind, "data": [1]} for name, kind in KINDS.items()]}
).encode()
_HEAD_SECONDS, _BODY_SECONDS = 5, 3
_MEMORY_MIB = 16
TARGET = Target("/predict", GOOD, "200", API_KEY)
V2 = Target("/v2/models/things/infer", TENSORS, "200", API_KEY)


def row(text: bytes) -> bytes:
    return TARGET.post(b'{"instances": [' + text + b"]}")


def tensor(text: bytes) -> bytes:
    return V2.post(b'{"inputs": [' + text + b"]}")


CASES = {
    **TARGET.bodies(),
    # Rows
    "truncated": (TARGET.post(GOOD[:-2]), "400"),
    "null": (TARGET.post(b"null"), "422"),
    "a text": (TARGET.post(b'"x"'), "422"),
    "an array": (TARGET.post(b"[]"), "422"),
    "no rows": (TARGET.post(b'{"instances": []}'), "422"),
    "rows of both kinds": (TARGET.post(b'{"instances": [{"x": 1, "n": 1}], "inputs": [[1, 1, null]]}'), "422"),
    "more beside the rows": (TARGET.post(b'{"instances": [{"x": 1, "n": 1}], "parameters": {}}'), "422"),
    "deep object": (TARGET.post(b'{"instances":' * 100_000), "422"),
    "deep and closed": (TARGET.post(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "422"),
    "deep inside a row": (row(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "400"),
    "NaN": (row(b'{"x": NaN, "n": 1}'), "422"),
    "Infinity": (row(b'{"x": -Infinity, "n": 1}'), "422"),
    "1e999": (row(b'{"x": 1e999, "n": 1}'), "422"),
    "400 digits": (row(b'{"x": %s, "n": 1}' % (b"9" * 400)), "422"),
    "10,000 digits": (row(b'{"x": %s, "n": 1}' % (b"9" * 10_000)), "400 422"),
    "a fraction for a long": (row(b'{"x": 1, "n": 1.0}'), "422"),
    "more than 64 bits": (row(b'{"x": 1, "n": 9223372036854775808}'), "422"),
    "a text for a number": (row(b'{"x": "1", "n": 1}'), "422"),
    "true for a number": (row(b'{"x": true, "n": 1}'), "422"),
    "null for a number": (row(b'{"x": null, "n": 1}'), "422"),
    "an array for a number": (row(b'{"x": [1], "n": 1}'), "422"),
    "missing": (row(b'{"n": 1}'), "422"),
    "unknown": (row(b'{"x": 1, "n": 1, "kind": "high"}'), "422"),
    "NUL in a name": (row(b'{"x\\u0000": 1, "n": 1}'), "422"),
    "one name twice": (row(b'{"x": "1", "x": 1, "n": 1}'), "200 422"),
    "a name of 100,000 letters": (row(b'{"%s": 1}' % (b"x" * 100_000)), "422"),
    "10,000 unknown names": (row(json.dumps({f"x{n}": n for n in range(10_000)}).encode()), "422"),
    "3 places": (TARGET.post(b'{"inputs": [[1, 1]]}'), "422"),
    "5 places": (TARGET.post(b'{"inputs": [[1, 1, null, 1, 1]]}'), "422"),
    "ragged": (TARGET.post(b'{"inputs": [[1, 1, null], [1]]}'), "422"),
    "a million brackets": (TARGET.post(b'{"inputs": [' + b"[]," * 330_000 + b"[]]}"), "422"),
    "a million objects": (TARGET.post(b'{"instances": [' + b"{}," * 330_000 + b"{}]}"), "422"),
    "a million objects that end": (TARGET.post(b'{"instances": [' + b"{}," * 330_000), "400 422"),
    "9 MiB": (TARGET.post(b" " * 9_437_184), "413"),
    "10,001 rows": (TARGET.post(b'{"inputs": [' + b"[1,1,null]," * 10_000 + b"[1,1,null]]}"), "422"),
    "10,000 rows": (TARGET.post(b'{"inputs": [' + b"[1,1,null]," * 9_999 + b"[1,1,null]]}"), "200"),
    "a text of 1 MiB": (row(b'{"x": 1, "n": 1, "note": "%s"}' % (b"x" * 1_048_576)), "200"),
    "escapes of 1 MiB": (row(b'{"x": 1, "n": 1, "note": "%s"}' % (b"\\u0041" * 174_000)), "200"),
    "an unknown query": (TARGET.head(first="POST /predict?probabilities=perhaps HTTP/1.1") + GOOD, "422"),
    "up and away": (TARGET.head(first="POST /v2/../predict HTTP/1.1") + GOOD, "404"),
    "bytes in the target": (b"POST /predict/\xff HTTP/1.1\r\nHost: h\r\n\r\n", "400 404"),
    # Tensors
    # The first mistake is told, and may be a name.
    **{f"v2: {name}": (request, "400 422") for name, (request, _) in V2.bodies().items()},
    "v2: good": (V2.one, "200"),
    "v2: GET": (V2.head(first="GET /v2/models/things/infer HTTP/1.1") + TENSORS, "405"),
    "v2: no key": (V2.head(Authorization=None) + TENSORS, "401"),
    "v2: another model": (V2.head(first="POST /v2/models/none/infer HTTP/1.1") + TENSORS, "404"),
    "v2: another version": (V2.head(first="POST /v2/models/things/versions/9/infer HTTP/1.1") + TENSORS, "404"),
    "v2: a version of 10,000 letters": (
        V2.head(first=f"POST /v2/models/things/versions/{'9' * 10_000}/infer HTTP/1.1") + TENSORS, "404"
    ),
    "v2: no tensors": (tensor(b""), "422"),
    "v2: numbers for tensors": (tensor(b"1, 2"), "422"),
    "v2: a tensor without data": (tensor(b'{"name": "x", "shape": [1], "datatype": "FP64"}'), "422"),
    "v2: a shape of an exbibyte": (
        tensor(b'{"name": "x", "shape": [1152921504606846976], "datatype": "FP64", "data": [1]}'), "422"
    ),
    "v2: a negative shape": (tensor(b'{"name": "x", "shape": [-1], "datatype": "FP64", "data": [1]}'), "422"),
    "v2: no shape": (tensor(b'{"name": "x", "shape": [], "datatype": "FP64", "data": [1]}'), "422"),
    "v2: a million brackets": (
        tensor(b'{"name": "x", "shape": [1], "datatype": "FP64", "data": [' + b"[]," * 330_000 + b"[]]}"), "422"
    ),
    "v2: deep parameters": (
        V2.post(TENSORS[:-1] + b', "parameters": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "400 422"
    ),
    "v2: NaN": (V2.post(TENSORS.replace(b'[1]}, {', b'[NaN]}, {')), "422"),
    **TARGET.framing(),
}  # fmt: skip


@pytest.fixture(scope="module")
def mlflow_here() -> Iterator[FakeMlflow]:
    with mlflow_server() as fake:
        fake.promote("1", model_file())
        yield fake


@pytest.fixture(scope="module")
def process(mlflow_here: FakeMlflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(
        tmp_path_factory.mktemp("hostile"), mlflow_here.uri,
        LEVADA_PREDICTOR__BODY_TIMEOUT=str(_BODY_SECONDS), LEVADA_PREDICTOR__MAX_CONNECTIONS="200",
    )  # fmt: skip
    with httpx.Client(base_url=process.url) as client:
        for _ in range(200):
            assert healthy(client)
        # What a large body needs once is kept by the allocator; it is no growth.
        large = b'{"inputs": [' + b",".join([b"[1.5,1,null]"] * 10_000) + b"]}"
        assert client.post("/predict", content=large, headers=HEADERS).status_code == 200
    yield process
    process.stop()


def healthy(client: httpx.Client) -> bool:
    return client.post("/predict", content=GOOD, headers=HEADERS).status_code == 200


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


@pytest.mark.row(54, process=True)
def test_every_case_is_answered_as_meant(process: Process) -> None:
    wrong = {}
    with httpx.Client(base_url=process.url) as client:
        before = resident(process.process.pid)
        for name, (request, expected) in CASES.items():
            begin = time.monotonic()
            found, raw = talk(process.port, request)
            if tuple(found) not in allowed(expected) or time.monotonic() - begin > 3:
                wrong[name] = (found, expected, time.monotonic() - begin, raw[:300])
            assert healthy(client), name
        grown = resident(process.process.pid, "VmHWM") - before
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())
    print(f"{len(CASES)} cases, memory +{grown:.1f} MiB at most")
    assert grown <= _MEMORY_MIB
    assert "Traceback" not in process.log.read_text()
    assert "failed" not in process.log.read_text()


@pytest.mark.row(51, process=True)
def test_every_refusal_is_a_problem(process: Process) -> None:
    for name, (request, _) in CASES.items():
        if name == "HEAD":
            continue
        _, raw = talk(process.port, request)
        for status, top, body in answers(raw):
            if 400 <= status < 500:
                assert b"application/problem+json" in top, name
                assert json.loads(body)["status"] == status, name


@pytest.mark.parametrize("body", ["whole", "chunks"])
def test_100_mb(process: Process, body: str) -> None:
    before = resident(process.process.pid)
    block = b"x" * 1_000_000
    request = TARGET.post(block * 100) if body == "whole" else TARGET.chunked(*[block] * 100)
    begin = time.monotonic()
    found, _ = talk(process.port, request, seconds=20)
    assert found in (["413"], [])  # the client is told, and let go before it has sent all of it
    assert time.monotonic() - begin < 5
    with httpx.Client(base_url=process.url) as client:
        assert healthy(client)
    assert resident(process.process.pid, "VmHWM") - before <= _MEMORY_MIB


SLOW = {
    "headers": (b"POST /predict HTTP/1.1\r\nX-A: ", b"x", _HEAD_SECONDS),
    "body": (TARGET.head(Content_Length="1000"), b" ", _BODY_SECONDS),
    "the second request": (TARGET.one + b"POST /", b"x", _HEAD_SECONDS),
}


def test_slow_ones_are_closed_while_others_are_served(process: Process) -> None:
    found: dict[str, tuple[list[str], float]] = {}
    threads = [
        threading.Thread(target=lambda name=name, case=case: found.update({name: drip(process.port, *case[:2], 0.2)}))
        for name, case in SLOW.items()
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=process.url) as client:
        while any(thread.is_alive() for thread in threads):
            assert healthy(client)
            time.sleep(0.05)
    for name, (_, _, seconds) in SLOW.items():
        told, taken = found[name]
        assert told[-1:] == ["408"], name
        assert seconds - 0.5 < taken < seconds + 1.5, name
    assert found["the second request"][0] == ["200", "408"]


def test_too_many_connections(process: Process) -> None:
    address = ("127.0.0.1", process.port)
    time.sleep(1)
    opened = [socket.create_connection(address) for _ in range(230)]
    try:
        time.sleep(0.2)
        answer = opened[-1].recv(1000)
        assert statuses(answer) == ["503"]
    finally:
        for connection in opened:
            connection.close()
    deadline = time.monotonic() + 5
    with httpx.Client(base_url=process.url) as client:
        while not healthy(client):
            assert time.monotonic() < deadline
            time.sleep(0.2)
