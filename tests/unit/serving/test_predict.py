"""The HTTP interface, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from levada.pipeline import Pipeline, parse_pipeline
from levada.serving.forms import MAX_INSTANCES

from .conftest import DECLARED
from .predicting import HEADERS, Running, loaded

Make = Callable[..., bytes]
ROW = {"x": 0.5, "n": 1, "note": "seen"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    made = Running(parse_pipeline(DECLARED, "things"))
    yield made
    made.close()


@pytest.fixture
def running(server: Running) -> Running:
    server.champion, server.ready = None, False
    return server


def test_rows_are_answered_with_label_scores_and_version(running: Running, make_model: Make) -> None:
    running.champion = loaded(make_model(), "3")
    body = {"instances": [ROW, {"x": -5, "n": -3}, {"x": 1e300, "n": 2**62, "note": None}]}
    status, answer, headers = running.ask(body)
    assert status == 200
    assert answer == {
        "predictions": [{"label": "high"}, {"label": "low"}, {"label": "high"}],
        "model": {"name": "things", "version": "3"},
    }
    assert (headers["levada-model"], headers["levada-model-version"]) == ("things", "3")
    _, told, _ = running.ask(body, "/predict?probabilities=true")
    assert told["model"] == answer["model"]
    assert [prediction["label"] for prediction in told["predictions"]] == ["high", "low", "high"]
    scores = told["predictions"][0]["scores"]
    assert scores.keys() == {"low", "high"}
    assert scores["high"] == pytest.approx(0.8175744761936437, abs=1e-12)


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("instance", "field", "rule"),
    [
        ('{"n": 1}', "x", "required"),
        ('{"x": null, "n": 1}', "x", "required"),
        ('{"x": NaN, "n": 1}', "x", "type"),
        ('{"x": -Infinity, "n": 1}', "x", "type"),
        ('{"x": 1e999, "n": 1}', "x", "type"),
        ('{"x": "1.5", "n": 1}', "x", "type"),
        ('{"x": true, "n": 1}', "x", "type"),
        ('{"x": [1.5], "n": 1}', "x", "type"),
        ('{"x": 1.5, "n": 1.5}', "n", "type"),
        ('{"x": 1.5, "n": 9223372036854775808}', "n", "type"),
        ('{"x": 1.5, "n": 1, "note": 7}', "note", "type"),
        ('{"x": 1.5, "n": 1, "kind": "high"}', "kind", "unknown"),
        ('{"x": 1.5, "n": 1, "y": NaN}', "y", "unknown"),
    ],
)
def test_a_feature_that_does_not_fit_is_named(
    running: Running, make_model: Make, instance: str, field: str, rule: str
) -> None:
    running.champion = loaded(make_model(), "1")
    status, answer, headers = running.ask('{"instances": [{"x": 0, "n": 0}, ' + instance + "]}")
    assert (status, headers["content-type"]) == (422, "application/problem+json")
    assert [(error["instance"], error["field"], error["rule"]) for error in answer["errors"]] == [(1, field, rule)]


@pytest.mark.row(51)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"instances": [{"x": 1.5, "n": 1, "note": "\\ud800"}]}', 400),  # half a character
        (b"[" * 100_000, 400),
        (b"9" * 10_000, 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"instances": {}}', 422),
        (b'{"instances": []}', 422),
        (b'{"instances": [[1.5, 1]]}', 422),
        (b'{"inputs": [{"x": 1.5, "n": 1}]}', 422),
        (b'{"inputs": [[1.5, 1, null]], "instances": [{"x": 1.5, "n": 1}]}', 422),
        (b'{"instances": [], "parameters": {}}', 422),
        (b'{"instances": [' + b"{}," * MAX_INSTANCES + b"{}]}", 422),
        (b" " * 1_000_001, 413),
    ],
)
def test_bodies_that_are_no_request(running: Running, make_model: Make, body: bytes, status: int) -> None:
    running.champion = loaded(make_model(), "1")
    got, answer, headers = running.ask(body)
    assert (got, answer["status"], headers["content-type"]) == (status, status, "application/problem+json")
    # The process is well and answers the next one.
    assert running.ask({"instances": [ROW]})[0] == 200


@pytest.mark.row(51)
def test_methods_paths_and_types(running: Running, make_model: Make) -> None:
    assert running.ask({"instances": [ROW]})[0] == 503
    assert running.ask({"instances": [ROW]})[2]["retry-after"] == "5"
    assert running.ask(None, "/readyz", "GET")[0] == 503
    assert running.ask(None, "/version", "GET")[0] == 503
    assert running.ask(None, "/livez", "GET")[0] == 200
    running.ready = True
    assert running.ask(None, "/readyz", "GET")[0] == 200
    running.champion = loaded(make_model(), "1")
    version = running.ask(None, "/version", "GET")[1]
    assert version.pop("loaded_at") > "2026"
    assert version == {
        "name": "things", "version": "1", "run_id": "run-1", "snapshot": "77",
        "task": "classification", "label": "kind", "labels": ["low", "high"],
        "features": [
            {"name": "x", "type": "double", "required": True}, {"name": "n", "type": "long", "required": True},
            {"name": "note", "type": "string", "required": False},
        ],
    }  # fmt: skip
    assert running.ask(b"x", Content_Type="text/csv")[0] == 415
    assert running.ask(b"{}", Content_Type="application/json; charset=utf-8")[0] == 422
    status, _, headers = running.ask(None, method="GET")
    assert (status, headers["allow"]) == (405, "POST")
    status, answer, headers = running.ask(None, "/nothing", "GET")
    assert (status, headers["content-type"], answer["status"]) == (404, "application/problem+json", 404)
    assert running.ask(b"", "/version", "DELETE")[0] == 405
    metrics = running.ask(None, "/metrics", "GET")[1]["text"].decode()
    assert 'levada_predict_requests_total{code="415",name="things"}' in metrics


def test_a_body_without_a_length_is_cut_off_at_the_limit(running: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 100_000

    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.request("POST", "/predict", chunks(), HEADERS, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_the_description_is_made_from_the_declaration(running: Running) -> None:
    described = running.ask(None, "/openapi.json", "GET")[1]
    operation = described["paths"]["/predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    named, positional = (one["properties"] for one in schema["oneOf"])
    instance = named["instances"]["items"]
    assert {name: each["type"] for name, each in instance["properties"].items()} == {
        "x": "number", "n": "integer", "note": ["string", "null"],
    }  # fmt: skip
    assert instance["required"] == ["x", "n"]
    assert [each["type"] for each in positional["inputs"]["items"]["prefixItems"]] == [
        "number", "integer", ["string", "null"],
    ]  # fmt: skip
    assert {"200", "400", "401", "403", "413", "415", "422", "503"} == operation["responses"].keys()
    assert {"/version", "/livez", "/readyz", "/metrics"} < described["paths"].keys()


@pytest.mark.row(52)
def test_swapping_models_under_load_fails_no_request_and_mixes_none(running: Running, make_model: Make) -> None:
    # What a version answers tells which model it was: the labels are its own.
    models = [loaded(make_model((f"low-{n}", f"high-{n}")), str(n)) for n in range(6)]
    running.champion = models[0]
    stop = threading.Event()
    answers: list[tuple[int, str, str]] = []
    failures: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        body = json.dumps({"instances": [ROW] * 3})
        while not stop.is_set():
            try:
                connection.request("POST", "/predict", body, HEADERS)
                response = connection.getresponse()
                answer = json.loads(response.read())
                labels = {prediction["label"] for prediction in answer["predictions"]}
                answers.append((response.status, answer["model"]["version"], *labels))
            except Exception as error:
                failures.append(repr(error))
                connection.close()
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for number in range(40):
        running.champion = models[number % 6]
        time.sleep(0.05)
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    assert len(answers) > 200
    assert {answer[0] for answer in answers} == {200}
    assert {answer[1:] for answer in answers} == {(str(n), f"high-{n}") for n in range(6)}


def test_a_drain_sends_every_client_away_and_fails_no_request(pipeline: Pipeline, make_model: Make) -> None:
    running = Running(pipeline)
    running.champion = loaded(make_model(), "1")
    results: list[int] = []
    sent_away: list[bool] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        closed = False
        while not closed:
            connection.request("POST", "/predict", json.dumps({"instances": [ROW]}), HEADERS)
            response = connection.getresponse()
            response.read()
            results.append(response.status)
            closed = response.will_close
        sent_away.append(closed)
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    time.sleep(0.3)
    running.close()
    for thread in clients:
        thread.join(10)
    assert len(sent_away) == 4
    assert set(results) == {200}
    assert len(results) > 50
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


def test_the_predictor_needs_none_of_the_training_libraries() -> None:
    code = (
        "import sys; import levada.serving.serve; "
        "print(sorted({'mlflow', 'sklearn', 'pandas', 'pyarrow', 'pyiceberg', 'onnx', 'skl2onnx'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
