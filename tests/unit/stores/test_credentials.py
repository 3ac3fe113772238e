"""Secrets are made once: by a fake of the Kubernetes API that refuses what the real one refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from levada.config import ConfigError
from levada.stores.credentials import Cluster, CredentialsError, Random, apply, load_spec

SPEC: dict[str, Any] = {
    "collector-keys": {"keys.json": {"apiKeysOf": ["api-key/key"]}},
    "api-key": {"key": {"random": 32}},
    "airflow": {"fernet-key": {"fernet": True}, "admin-username": {"value": "admin"}},
}


class Api:
    """Secrets by name, with resource versions."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.before_write: list[Any] = []
        self.writes: list[str] = []
        self.cluster = Cluster(httpx.Client(base_url="https://api", transport=httpx.MockTransport(self._answer)), "ns")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path.startswith("/api/v1/namespaces/ns/secrets")
        name = request.url.path.removeprefix("/api/v1/namespaces/ns/secrets").strip("/")
        if request.method == "GET":
            found = self.secrets.get(name)
            return (
                httpx.Response(404, json={"message": "not found"}) if found is None else httpx.Response(200, json=found)
            )
        if self.before_write:
            self.before_write.pop()()
        body = json.loads(request.content)
        if request.method == "POST":
            name = body["metadata"]["name"]
            if name in self.secrets:
                return httpx.Response(409, json={"message": "already exists"})
            self.secrets[name] = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
        else:
            assert request.headers["content-type"] == "application/merge-patch+json"
            found = self.secrets[name]
            if body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
                return httpx.Response(409, json={"message": "changed"})
            found["data"] = {**found.get("data", {}), **body["data"]}
            found["metadata"]["resourceVersion"] += "1"
        self.writes.append(name)
        return httpx.Response(200, json=self.secrets[name])

    def clear(self, name: str, key: str) -> str:
        return base64.b64decode(self.secrets[name]["data"][key]).decode()


def run(api: Api, tmp_path: Path, spec: dict[str, Any] = SPEC) -> list[str]:
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    lines: list[str] = []
    apply(api.cluster, load_spec(tmp_path / "spec.json"), instance="levada", report=lines.append)
    return lines


def test_all_is_made_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    api = Api()
    lines = run(api, tmp_path)
    assert lines == [
        "Secret api-key: made key",
        "Secret airflow: made fernet-key, admin-username",
        "Secret collector-keys: made keys.json",
    ]
    key = api.clear("api-key", "key")
    assert len(key) >= 43
    assert key not in "\n".join(lines)
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert json.loads(api.clear("collector-keys", "keys.json")) == {"default": {"sha256": digest, "pipelines": ["*"]}}
    Fernet(api.clear("airflow", "fernet-key"))
    assert api.clear("airflow", "admin-username") == "admin"
    labels = {"app.kubernetes.io/managed-by": "levada-credentials", "app.kubernetes.io/instance": "levada"}
    assert api.secrets["airflow"]["metadata"]["labels"] == labels
    before = json.dumps(api.secrets)
    assert run(api, tmp_path) == [f"Secret {name}: unchanged" for name in ("api-key", "airflow", "collector-keys")]
    assert json.dumps(api.secrets) == before


def test_a_missing_key_is_added_and_a_present_one_kept(tmp_path: Path) -> None:
    api = Api()
    kept = base64.b64encode(b"chosen by hand").decode()
    api.secrets["airflow"] = {"metadata": {"name": "airflow", "resourceVersion": "5"}, "data": {"admin-username": kept}}
    assert "Secret airflow: made fernet-key" in run(api, tmp_path)
    assert api.clear("airflow", "admin-username") == "chosen by hand"


def test_a_race_is_lost_without_harm(tmp_path: Path) -> None:
    api, other = Api(), Api()
    other_spec = {"api-key": {"key": {"value": "theirs"}}}
    run(other, tmp_path, other_spec)
    api.before_write = [lambda: api.secrets.update(other.secrets)]  # just before our POST
    run(api, tmp_path, {"api-key": {"key": {"random": 32}, "more": {"value": "x"}}})
    assert api.clear("api-key", "key") == "theirs"
    assert api.clear("api-key", "more") == "x"

    def touch() -> None:
        api.secrets["api-key"]["metadata"]["resourceVersion"] = "77"
        api.secrets["api-key"]["data"]["late"] = base64.b64encode(b"theirs").decode()

    api.before_write = [touch]  # just before our PATCH
    run(api, tmp_path, {"api-key": {"late": {"value": "ours"}, "later": {"value": "ours"}}})
    assert (api.clear("api-key", "late"), api.clear("api-key", "later")) == ("theirs", "ours")


def test_several_api_keys_go_by_the_name_of_their_secret(tmp_path: Path) -> None:
    api = Api()
    spec = {
        "a": {"k": {"value": "1"}},
        "b": {"k": {"value": "2"}},
        "keys": {"keys.json": {"apiKeysOf": ["a/k", "b/k"]}},
    }
    run(api, tmp_path, spec)
    assert set(json.loads(api.clear("keys", "keys.json"))) == {"a", "b"}


def test_what_goes_wrong_is_named(tmp_path: Path) -> None:
    api = Api()
    with pytest.raises(CredentialsError, match="Secret nobody has no key key"):
        run(api, tmp_path, {"keys": {"keys.json": {"apiKeysOf": ["nobody/key"]}}})
    refusing = Cluster(
        httpx.Client(
            base_url="https://api",
            transport=httpx.MockTransport(lambda _: httpx.Response(403, json={"message": "secrets is forbidden"})),
        ),
        "ns",
    )
    with pytest.raises(CredentialsError, match="Secret api-key: 403 Forbidden secrets is forbidden"):
        apply(refusing, {"api-key": {"key": Random(random=32)}}, instance="x", report=lambda _: None)
    for bad in ({"random": 4}, {"fernet": False}, {"value": "x", "random": 32}, {}):
        (tmp_path / "bad.json").write_text(json.dumps({"secret": {"key": bad}}))
        with pytest.raises(ConfigError, match=r"secret\.key: give one of value"):
            load_spec(tmp_path / "bad.json")
