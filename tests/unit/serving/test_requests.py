"""What may be asked: positional rows, tensors, keys, regressions; and many at once in one run of the model."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from levada.http.problem import Problem
from levada.pipeline import parse_pipeline
from levada.serving.forms import EXPLAINED_BYTES, NOT_PLAIN, Form

from .conftest import DECLARED, FEATURES, model_file, regression_file
from .predicting import API_KEY, OTHER_KEY, Running, loaded

Make = Callable[..., bytes]
FORM = Form(FEATURES)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    made = Running(parse_pipeline(DECLARED, "things"))
    yield made
    made.close()


@pytest.fixture
def running(server: Running) -> Running:
    server.champion, server.ready = loaded(model_file(), "3"), True
    return server


def tensor(name: str, datatype: str, *data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": [*data], **more}


X, N = tensor("x", "FP64", 0.5, -5), tensor("n", "INT64", 1, -3)
INFER = "/v2/models/things/infer"


def test_rows_may_come_without_names(running: Running) -> None:
    status, answer, _ = running.ask({"inputs": [[0.5, 1, "seen"], [-5, -3, None]]})
    assert (status, [each["label"] for each in answer["predictions"]]) == (200, ["high", "low"])


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("row", "field", "rule"),
    [
        ('[NaN, 1, ""]', "x", "type"),
        ('["1", 1, ""]', "x", "type"),
        ('[null, 1, ""]', "x", "required"),
        ('[1, 1.5, ""]', "n", "type"),
        ("[1, 1, 1]", "note", "type"),
        ("[1]", "n", "size"),
        ("[]", "x", "size"),
        ("[1, 1, null, 1]", "", "size"),
    ],
)
def test_a_value_that_does_not_fit_its_place_is_named(running: Running, row: str, field: str, rule: str) -> None:
    status, answer, _ = running.ask('{"inputs": [[0, 0, null], ' + row + "]}")
    assert status == 422
    assert [(each["instance"], each["field"], each["rule"]) for each in answer["errors"]] == [(1, field, rule)]


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ('{"x": "1", "n": 1}', "x"),
        ('{"x": 1, "n": 1.5}', "n"),
        ('{"n": 1}', "x"),
        ('{"x": 1e999, "n": 1}', "x"),
        ('{"x": 1, "n": 1, "note": 1}', "note"),
    ],
)
def test_a_large_body_is_refused_for_its_first_mistake(running: Running, bad: str, field: str) -> None:
    rows = ['{"x": 0.123456789, "n": 123456789, "note": "a longer text, so that there are fewer of them"}'] * 5000
    status, answer, _ = running.ask(f'{{"instances": [{",".join([*rows, bad])}]}}')
    assert status == 422
    assert [(each["instance"], each["field"]) for each in answer["errors"]] == [(5000, field)]
    status, answer, _ = running.ask(f'{{"instances": [{",".join(rows)}]}}')
    assert (status, len(answer["predictions"])) == (200, 5000)
    assert running.ask(f'{{"instances": [{",".join(rows)}')[0] == 400
    assert running.ask(f'{{"instances": 1, "more": [{",".join(rows)}]}}')[0] == 422


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
                   st.lists(st.integers(), max_size=2))  # fmt: skip


@effort(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(["x", "n", "note", "y"]), VALUES), min_size=1, max_size=3))
def test_both_ways_to_read_a_body_agree(instances: list[dict[str, Any]]) -> None:
    try:
        expected = [tuple(each) for each in FORM.checked(instances)]
    except Problem:
        expected = None
    try:
        plain = FORM.plain(json.dumps({"instances": instances}).encode())
    except NOT_PLAIN:
        plain = None
    assert plain == expected
    assert plain is None or [[*map(type, row)] for row in plain] == [[*map(type, row)] for row in expected or ()]


def test_values_that_the_model_cannot_answer_are_refused(running: Running) -> None:
    running.champion = loaded(regression_file(1e300), "1")
    status, answer, _ = running.ask({"instances": [{"x": 1.0}, {"x": 1e300}]})
    assert (status, answer["errors"][0]["instance"], answer["errors"][0]["rule"]) == (422, 1, "finite")


@pytest.mark.row(51)
def test_a_regression_answers_values(running: Running) -> None:
    running.champion = loaded(regression_file(), "1")
    for path in ("/predict", "/predict?probabilities=true"):
        assert running.ask({"instances": [{"x": 1.25}, {"x": -3}]}, path)[1]["predictions"] == [
            {"value": 2.5}, {"value": -6.0},
        ]  # fmt: skip
    assert running.ask(None, "/version", "GET")[1]["task"] == "regression"
    answer = running.ask({"inputs": [tensor("x", "FP64", 1.25)]}, INFER)[1]
    assert answer["outputs"] == [{"name": "value", "datatype": "FP64", "shape": [1], "data": [2.5]}]
    assert running.ask({"inputs": [X], "outputs": [{"name": "label"}]}, INFER)[0] == 422


@pytest.mark.parametrize("labels", [(0, 1), (False, True)])
def test_labels_keep_their_type(running: Running, labels: tuple[Any, Any]) -> None:
    running.champion = loaded(model_file(labels), "1")
    answer = running.ask({"instances": [{"x": 9, "n": 1}]}, "/predict?probabilities=true")[1]
    assert answer["predictions"][0]["label"] is labels[1]
    assert answer["predictions"][0]["scores"].keys() == {json.dumps(labels[0]), json.dumps(labels[1])}
    output = running.ask({"inputs": [X, N]}, INFER)[1]["outputs"][0]
    assert (output["datatype"], output["data"]) == ("BOOL" if labels[1] is True else "INT64", [labels[1], labels[0]])


@pytest.mark.row(51)
def test_keys_and_their_scope(running: Running) -> None:
    body = {"instances": [{"x": 1, "n": 1}]}
    for path in ("/predict", INFER, "/predict?probabilities=true"):
        assert running.ask(body, path, Authorization="Bearer nobody")[0] == 401
        status, answer, headers = running.ask(body, path, Authorization=f"Bearer {OTHER_KEY}")
        assert (status, headers["levada-model-version"]) == (403, "3")
        assert "things" in answer["detail"]
        assert running.ask(body, path, Authorization=API_KEY)[2]["www-authenticate"] == "Bearer"
    assert running.ask(None, "/version", "GET", Authorization="")[0] == 200


@pytest.mark.row(51)
def test_every_answer_names_model_and_version(running: Running) -> None:
    asked = [
        ({"instances": [{"x": 1, "n": 1}]}, "/predict", "POST"), (b"{", "/predict", "POST"), (None, "/v2", "GET"),
        (None, "/nothing", "GET"), (None, "/metrics", "GET"), (None, "/predict", "GET"), ({}, INFER, "POST"),
    ]  # fmt: skip
    for body, path, method in asked:
        headers = running.ask(body, path, method)[2]  # type: ignore[arg-type]
        assert (headers["levada-model"], headers["levada-model-version"]) == ("things", "3"), path
    running.champion = None
    assert running.ask({}, "/predict")[2]["levada-model"] == "things"


def test_probabilities_are_asked_for_in_one_way(running: Running) -> None:
    body = {"instances": [{"x": 1, "n": 1}]}
    assert "scores" not in running.ask(body, "/predict?probabilities=false")[1]["predictions"][0]
    for query in ("probabilities=yes", "probabilities", "probabilities=true&probabilities=false"):
        status, answer, _ = running.ask(body, f"/predict?{query}")
        assert (status, answer["errors"][0]["field"]) == (422, "probabilities")


@pytest.mark.row(51)
def test_the_open_inference_protocol(running: Running) -> None:
    running.ready = False
    assert running.ask(None, "/v2", "GET")[1]["name"] == "levada"
    assert running.ask(None, "/v2/health/live", "GET")[:2] == (200, {"live": True})
    assert running.ask(None, "/v2/health/ready", "GET")[:2] == (200, {"ready": True})
    for path in ("/v2/models/things", "/v2/models/things/versions/3"):
        about = running.ask(None, path, "GET")[1]
        assert (about["name"], about["versions"], about["platform"]) == ("things", ["3"], "onnxruntime")
        assert [(each["name"], each["datatype"], each["shape"]) for each in about["inputs"]] == [
            ("x", "FP64", [-1, 1]), ("n", "INT64", [-1, 1]), ("note", "BYTES", [-1, 1]),
        ]  # fmt: skip
        assert [each["name"] for each in about["outputs"]] == ["label", "probabilities"]
        assert running.ask(None, f"{path}/ready", "GET")[:2] == (200, {"name": "things", "ready": True})
    for path in (INFER, "/v2/models/things/versions/3/infer"):
        asked = {"id": "7", "inputs": [X, N], "parameters": {"any": [1]}}
        assert running.ask(asked, path)[1] == {
            "model_name": "things", "model_version": "3", "id": "7",
            "outputs": [{"name": "label", "datatype": "BYTES", "shape": [2], "data": ["high", "low"]}],
        }  # fmt: skip
    asked = {"inputs": [X, N], "outputs": [{"name": "probabilities"}, {"name": "label"}]}
    probabilities, label = running.ask(asked, INFER)[1]["outputs"]
    assert (probabilities["shape"], probabilities["parameters"], label["data"]) == (
        [2, 2], {"labels": ["low", "high"]}, ["high", "low"],
    )  # fmt: skip
    assert probabilities["data"][1] == pytest.approx(0.8175744761936437)
    for path in ("/v2/models/other", "/v2/models/things/versions/2", "/v2/models/things/versions/2/ready"):
        assert running.ask(None, path, "GET")[0] == 404
    assert running.ask({"inputs": [X, N]}, "/v2/models/other/infer")[0] == 404
    status, answer, _ = running.ask({"inputs": [X, N]}, "/v2/models/things/versions/2/infer")
    assert (status, answer["error"]) == (404, "version 3 of things serves, and no other")
    running.champion = None
    assert running.ask(None, "/v2/health/ready", "GET")[0] == 503
    assert running.ask({"inputs": [X, N]}, INFER)[2]["retry-after"] == "5"


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ([X], "n"),
        ([X, N, tensor("y", "FP64", 1, 1)], "y"),
        ([X, N, N], "inputs"),
        ([X, tensor("n", "FP64", 1.0, 1.0)], "n"),
        ([X, tensor("n", "INT64", 1, 1.5)], "n"),
        ([tensor("x", "FP64", "1", 2), N], "x"),
        ([tensor("x", "FP64", float("nan"), 2), N], "x"),
        ([tensor("x", "FP64", None, 2), N], "x"),
        ([tensor("x", "FP64", 1), N], "x"),
        ([{**X, "shape": [3]}, N], "x"),
        ([{**X, "shape": [2, 2]}, N], "x"),
        ([{**X, "data": [[1, 2], 3]}, N], "x"),
        ([{**X, "shape": [0], "data": []}, {**N, "shape": [0], "data": []}], "inputs"),
        ([tensor("rows", "FP64", 1, 2)], "rows"),
        ([], "x"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(running: Running, inputs: list[Any], field: str) -> None:
    status, answer, _ = running.ask(json.dumps({"inputs": inputs}), INFER)
    assert status == 422, answer
    assert answer["error"] == answer["detail"]
    assert answer["errors"][0]["field"] == field, answer


def test_one_tensor_may_hold_all_numbers(running: Running) -> None:
    running.champion = numbers = loaded(wide_file(), "1")
    assert [feature.name for feature in numbers.form.features] == ["a", "b"]
    flat = {"name": "predict", "shape": [2, 2], "datatype": "FP64", "data": [1, 2, 30, 40]}
    for given_ in (flat, {**flat, "data": [[1, 2], [30, 40]]}):
        assert running.ask({"inputs": [given_]}, INFER)[1]["outputs"][0]["data"] == [-1, -10]
    for wrong in ({**flat, "shape": [4]}, {**flat, "data": [1, 2, 3]}, {**flat, "data": [[1], [2]]}):
        assert running.ask({"inputs": [wrong]}, INFER)[1]["errors"][0]["field"] == "predict"


def wide_file() -> bytes:
    """A regression with two features: a - b."""
    from onnx import TensorProto, helper

    from levada.scoring import META_KEY, Feature, Meta

    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, 1]) for name in ("a", "b", "variable")]
    graph = helper.make_graph([helper.make_node("Sub", ["a", "b"], ["variable"])], "w", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    features = (Feature("a", "double", True), Feature("b", "double", True))
    helper.set_model_props(model, {META_KEY: Meta(features, "y", ()).to_json()})
    raw: bytes = model.SerializeToString()
    return raw


def ask_of(x: float, keys: str = API_KEY) -> bytes:
    body = json.dumps({"instances": [{"x": x, "n": 0}]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer {keys}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def labels(received: bytes) -> list[str]:
    return [
        json.loads(part.partition(b"\r\n\r\n")[2])["predictions"][0]["label"]
        for part in received.split(b"HTTP/1.1 200 OK\r\n")[1:]
    ]


def runs() -> float:
    return REGISTRY.get_sample_value("levada_predict_runs_total", {"name": "things"}) or 0.0


def test_requests_of_one_moment_share_a_run_and_each_gets_its_own_answer(running: Running) -> None:
    connections = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(40)]
    stop = threading.Event()
    before = runs()
    model = running.champion
    assert model is not None
    score = model.score

    def slow(rows: Any) -> Any:  # while it works, the others come in
        stop.wait(0.1)
        return score(rows)

    model.score = slow  # type: ignore[method-assign]
    for number, connection in enumerate(connections):
        connection.sendall(ask_of(1 if number % 3 else -1))
    for number, connection in enumerate(connections):
        connection.settimeout(10)
        assert labels(connection.recv(4096)) == ["high" if number % 3 else "low"], number
        connection.close()
    assert runs() - before < 10


def test_one_request_that_fails_the_run_fails_alone(running: Running) -> None:
    model = running.champion
    assert model is not None
    score_rows = model.model.score_rows

    def picky(rows: Any) -> Any:
        if any(row[0] == 13 for row in rows):
            raise RuntimeError("thirteen")
        return score_rows(rows)

    model.model.score_rows = picky  # type: ignore[method-assign]
    for repeat in range(20):
        connections = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(8)]
        for number, connection in enumerate(connections):
            connection.sendall(ask_of(13 if number == repeat % 8 else 1))
        for number, connection in enumerate(connections):
            connection.settimeout(10)
            status = connection.recv(4096)[9:12]
            assert status == (b"500" if number == repeat % 8 else b"200")
            connection.close()


def test_answers_to_pipelined_requests_come_in_order(running: Running) -> None:
    expected = [number % 3 == 0 for number in range(60)]
    sent = [ask_of(1 if high else -1) for high in expected]
    for size in (1, 3, 7, 60):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            for begin in range(0, 60, size):
                connection.sendall(b"".join(sent[begin : begin + size]))
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while data := connection.recv(65536):
                received += data
        assert labels(received) == ["high" if high else "low" for high in expected]


def test_errors_do_not_overtake_predictions(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall((ask_of(1) + ask_of(1, "nobody")) * 20)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while data := connection.recv(65536):
            received += data
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"401"] * 20


def test_no_key_is_asked_for_where_there_are_none() -> None:
    open_to_all = Running(parse_pipeline(DECLARED, "things"))
    open_to_all.app._keys = None
    open_to_all.champion = loaded(model_file(), "1")
    answer = httpx.post(f"http://127.0.0.1:{open_to_all.port}/predict", json={"instances": [{"x": 1, "n": 1}]})
    assert answer.status_code == 200
    open_to_all.close()


def test_what_is_explained_is_bounded() -> None:
    body = json.dumps({"instances": [{"x": "wrong", "n": "wrong"}] * 20_000}).encode()
    assert len(body) > EXPLAINED_BYTES
    with pytest.raises(Problem) as caught:
        FORM.rows(body)
    assert len(caught.value.errors_json()) == 1
    with pytest.raises(Problem) as caught:
        FORM.rows(json.dumps({"instances": [{"x": "wrong", "n": "wrong"}] * 5000}).encode())
    assert len(caught.value.errors_json()) == 20
