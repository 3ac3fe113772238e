"""Hostile requests against the real process: every answer is meant, nothing hangs, memory stays, others go on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.unit.http.hostile import BODY_SECONDS, CONNECTIONS, Target, Victim
from tests.unit.ingest.kafka import MockKafka

from .conftest import FakeMlflow, mlflow_server, model_file
from .predicting import API_KEY, HEADERS, Process
from .test_process import until

GOOD = b'{"instances": [{"x": 1.5, "n": 1}]}'
KINDS = {"x": "FP64", "n": "INT64"}
TENSORS = json.dumps(
    {"inputs": [{"name": name, "shape": [1], "datatype": kind, "data": [1]} for name, kind in KINDS.items()]}
).encode()
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
def victim(mlflow_here: FakeMlflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    broker = MockKafka()
    broker.make_topic("things.predictions")
    process = Process(
        tmp_path_factory.mktemp("hostile"), mlflow_here.uri,
        LEVADA_KAFKA__BOOTSTRAP=broker.bootstrap, LEVADA_KAFKA__PROTOCOL="PLAINTEXT",
        LEVADA_PREDICTOR__BODY_TIMEOUT=str(BODY_SECONDS), LEVADA_PREDICTOR__MAX_CONNECTIONS=str(CONNECTIONS),
    )  # fmt: skip
    victim = Victim(TARGET, process.port, process.process.pid, process.log)
    with httpx.Client(base_url=process.url) as client:
        for _ in range(200):
            assert victim.healthy(client)
        # What a large body needs once, and what it needs to be logged, is kept by the allocator; it is no growth.
        large = b'{"inputs": [' + b",".join([b"[1.5,1,null]"] * 10_000) + b"]}"
        assert client.post("/predict", content=large, headers=HEADERS).status_code == 200
        logged = 'levada_prediction_log_rows_total{name="things"} 10200.0'
        until(lambda: logged in client.get("/metrics").text, 30)
    yield victim
    process.stop()
    broker.kill()


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


@pytest.mark.row(54, process=True)
def test_every_case_is_answered_as_meant(victim: Victim) -> None:
    victim.check_answers(CASES)


@pytest.mark.row(51, process=True)
def test_every_refusal_is_a_problem(victim: Victim) -> None:
    victim.check_refusals(CASES)


@pytest.mark.parametrize("chunked", [False, True])
def test_100_mb(victim: Victim, chunked: bool) -> None:
    victim.check_100_mb(chunked=chunked)


def test_slow_ones_are_closed_while_others_are_served(victim: Victim) -> None:
    victim.check_slow()


def test_too_many_connections(victim: Victim) -> None:
    victim.check_connections()
