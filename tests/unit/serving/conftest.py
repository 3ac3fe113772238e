"""Small ONNX models, and an MLflow that answers the five requests of the predictor as MLflow 3.17 does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from levada.evidence import (
    EXAMPLE_FILE,
    EXAMPLE_TAG,
    GATE_TAG,
    MODEL_FILE,
    ROLLBACK_SIGNATURE_TAG,
    ROLLBACK_TAG,
    SIGNATURE_TAG,
    Record,
    sign,
)
from levada.pipeline import Pipeline, parse_pipeline
from levada.scoring import META_KEY, Feature, Label, Meta, OnnxModel

KEY = b"the key of the gate"
FEATURES = (Feature("x", "double", True), Feature("n", "long", True), Feature("note", "string", False))
DECLARED = {
    "fields": {
        "x": {"type": "double"},
        "n": {"type": "long"},
        "note": {"type": "string", "required": False},
        "kind": {"type": "string"},
    },
    "model": {"label": "kind"},
}


@pytest.fixture
def pipeline() -> Pipeline:
    """What the models of these tests predict."""
    return parse_pipeline(DECLARED, "things")


def regression_file(slope: float = 2.0) -> bytes:
    """A model that predicts slope · x."""
    nodes = [helper.make_node("Mul", ["x", "slope"], ["variable"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, 1])]
    outputs = [helper.make_tensor_value_info("variable", TensorProto.DOUBLE, [None, 1])]
    constants = [helper.make_tensor("slope", TensorProto.DOUBLE, [1], np.full(1, slope))]
    graph = helper.make_graph(nodes, "r", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {META_KEY: Meta((Feature("x", "double", True),), "y", ()).to_json()})
    raw: bytes = model.SerializeToString()
    return raw


def model_file(labels: tuple[Label, Label] = ("low", "high"), name: str = "m") -> bytes:
    """A model that gives the second label a probability of sigmoid(x + n); ``note`` is only looked at."""
    nodes = [
        helper.make_node("Add", ["x", "n"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["high"]),
        helper.make_node("Sub", ["one", "high"], ["low"]),
        helper.make_node("Equal", ["note", "empty"], ["blank"]),
        helper.make_node("Concat", ["low", "high"], ["probabilities"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, 1]),
        helper.make_tensor_value_info("n", TensorProto.DOUBLE, [None, 1]),
        helper.make_tensor_value_info("note", TensorProto.STRING, [None, 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, [None, 2]),
        helper.make_tensor_value_info("blank", TensorProto.BOOL, [None, 1]),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.DOUBLE, [1], np.ones(1)),
        helper.make_tensor("empty", TensorProto.STRING, [1], [b""]),
    ]
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {META_KEY: Meta(FEATURES, "kind", labels).to_json()})
    onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString()
    return raw


@dataclass
class Stored:
    """One model version of the fake registry."""

    raw: bytes
    tags: dict[str, str] = field(default_factory=dict)
    example: bytes = b""


@dataclass
class FakeMlflow:
    """A registry with one model, ``things``."""

    uri: str = ""
    alias: str | None = None
    versions: dict[str, Stored] = field(default_factory=dict)
    broken: bool = False
    """Whether every request fails."""
    downloads: int = 0

    def add(self, version: str, raw: bytes, *, champion: str | None, key: bytes = KEY, **changed: Any) -> Record:
        """Register a version with the gate's record; it is promoted if it is the champion after the decision."""
        record = Record(
            "promoted" if champion == version else "refused", version, champion, "accuracy", 0.95, None, "a test",
            OnnxModel(raw).sha256, f"2026-11-23T08:00:{int(version):02}.000000+00:00", generation=int(champion or 0),
        )  # fmt: skip
        text = replace(record, **changed).to_json()
        self.versions[version] = Stored(raw, {GATE_TAG: text, SIGNATURE_TAG: sign(key, "things", text)})
        return record

    def explain(self, version: str, example: bytes) -> None:
        """Give a version its example."""
        self.versions[version].example = example
        self.versions[version].tags[EXAMPLE_TAG] = hashlib.sha256(example).hexdigest()

    def roll_back(self, leaving: str, to: str) -> None:
        """Record that a person took a champion out, as ``levada rollback`` does."""
        old = Record.from_json(self.versions[leaving].tags[GATE_TAG])
        record = replace(
            old, outcome="rolled back", version=leaving, champion=to, generation=old.generation + 1,
            decided_at="2026-11-23T09:00:00.000000+00:00",
        )  # fmt: skip
        for version in (leaving, to):
            text = record.to_json()
            self.versions[version].tags |= {ROLLBACK_TAG: text, ROLLBACK_SIGNATURE_TAG: sign(KEY, "things", text)}
        self.alias = to

    def promote(self, version: str, raw: bytes) -> None:
        """Register a version that serves from now on."""
        self.add(version, raw, champion=version)
        self.alias = version

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        """Status and body of a GET."""
        if self.broken:
            return 500, b"{}"
        if path == "/api/2.0/mlflow/registered-models/alias":
            if not self.versions:
                return 404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'
            if self.alias is None:
                return 400, b'{"error_code": "INVALID_PARAMETER_VALUE"}'
            return 200, json.dumps({"model_version": self._version(self.alias)}).encode()
        if path == "/api/2.0/mlflow/model-versions/get":
            return 200, json.dumps({"model_version": self._version(query["version"])}).encode()
        if path == "/api/2.0/mlflow/model-versions/search":
            assert query.keys() == {"filter", "max_results", "order_by"}
            assert (query["filter"], query["order_by"]) == ("name = 'things'", "version_number DESC")
            newest = sorted(self.versions, key=int, reverse=True)[: int(query["max_results"])]
            return 200, json.dumps({"model_versions": [self._version(number) for number in newest]}).encode()
        if path == "/api/2.0/mlflow/runs/get":
            root = f"mlflow-artifacts:/1/{query['run_id']}/artifacts"
            return 200, json.dumps({"run": {"info": {"artifact_uri": root}}}).encode()
        run, _, file = path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/1/").partition("/artifacts/")
        stored = self.versions[run.removeprefix("run-")]
        self.downloads += 1
        return 200, {MODEL_FILE: stored.raw, EXAMPLE_FILE: stored.example}[file]

    def _version(self, number: str) -> dict[str, object]:
        tags = [{"key": key, "value": value} for key, value in self.versions[number].tags.items()]
        return {"name": "things", "version": number, "run_id": f"run-{number}", "tags": tags}


@contextmanager
def mlflow_server() -> Iterator[FakeMlflow]:
    """An empty registry on 127.0.0.1."""
    fake = FakeMlflow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            status, body = fake.answer(parts.path, dict(parse_qsl(parts.query)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.uri = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def mlflow() -> Iterator[FakeMlflow]:
    """:func:`mlflow_server`."""
    with mlflow_server() as fake:
        yield fake


@pytest.fixture
def make_model() -> Callable[..., bytes]:
    """:func:`model_file`."""
    return model_file
