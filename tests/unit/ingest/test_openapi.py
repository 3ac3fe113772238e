"""The generated OpenAPI: valid, scoped by key, and true, by what schemathesis finds out at the real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import jsonschema_rs

from levada.config import CollectorSettings
from levada.ingest import openapi
from levada.pipeline import parse_pipeline

from .collecting import API_KEY, Collecting
from .conftest import PEPPER, PIPELINES
from .kafka import MockKafka

RICH = {
    "fields": {
        "n": {"type": "long", "rule": "n BETWEEN -1 AND 100"},
        "d": {"type": "double", "required": False},
        "b": {"type": "boolean"},
        "kind": {"type": "string", "oneOf": ["a", "b"], "required": False},
        "pin": {"type": "string", "rule": "REGEXP(pin, '^[0-9]{4}$')", "sensitive": "hmac"},
    }
}


def test_a_declaration_in_json_schema() -> None:
    pipeline = parse_pipeline(
        {**RICH, "fields": {**RICH["fields"], "at": {"type": "timestamp"}}, "eventTime": "at"}, "p"
    )
    schema = openapi.document([pipeline], CollectorSettings())["components"]["schemas"]["p"]
    assert schema["required"] == ["n", "b", "pin", "at"]
    assert schema["additionalProperties"] is False
    found = schema["properties"]
    assert (found["n"]["minimum"], found["n"]["maximum"]) == (-1, 100)
    assert found["d"]["type"] == ["number", "null"]
    assert found["kind"]["enum"] == ["a", "b", None]
    assert (found["pin"]["pattern"], found["pin"]["writeOnly"]) == ("^[0-9]{4}$", True)
    assert "at most 7d ago, 1h ahead" in found["at"]["description"]
    good = {"n": 1, "b": True, "pin": "0000", "at": "2026-01-31T12:00:00Z"}
    assert jsonschema_rs.is_valid(schema, good)
    assert not jsonschema_rs.is_valid(schema, {**good, "n": 101})


def test_a_key_sees_its_own_pipelines(client: httpx.Client) -> None:
    assert client.get("/openapi.json").status_code == 401
    for key, pipelines in (("k-all", PIPELINES.keys() - {"off"}), ("k-one", {"keyed"})):
        headers = {"Authorization": f"Bearer {key}"}
        document = client.get("/openapi.json", headers=headers).json()
        assert document["paths"].keys() == {f"/v1/{name}/events" for name in pipelines}
    assert client.get("/v1/plain/openapi.json", headers=headers).status_code == 403
    one = client.get("/v1/keyed/openapi.json", headers=headers).json()
    assert one["paths"].keys() == {"/v1/keyed/events"}
    assert one["openapi"] == "3.1.0"
    assert client.post("/openapi.json", headers=headers).headers["allow"] == "GET"


def test_schemathesis_finds_nothing(tmp_path: Path, kafka: MockKafka) -> None:
    kafka.make_topic("rich")
    (tmp_path / "pepper").write_text(PEPPER)
    collecting = Collecting(
        tmp_path, kafka.bootstrap, {"rich": RICH}, LEVADA_COLLECTOR__PEPPER_FILE=str(tmp_path / "pepper")
    )
    headers = {"Authorization": f"Bearer {API_KEY}"}
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(httpx.get(f"{collecting.url}/openapi.json", headers=headers).json()))
    settings = tmp_path / "schemathesis.toml"
    # An array in which one event is bad is a 207, and so are bad lines. JSON Schema takes 1.0 for an integer, we do
    # not.
    settings.write_text(
        '[checks]\nnegative_data_rejection.expected-statuses = ["207", "4xx"]\n'
        'positive_data_acceptance.expected-statuses = ["2xx", "422"]\n'
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run", str(document)),
            *("--url", collecting.url, "--header", f"Authorization: Bearer {API_KEY}"),
            *("--checks", "all", "--exclude-checks", "use_after_free,ensure_resource_availability"),
            *("--max-examples", os.environ.get("LEVADA_EXAMPLES", "150"), "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    collecting.stop()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
