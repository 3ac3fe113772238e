"""The Kubernetes API as JSON Schemas that refuse unknown fields.

The schemas come from the API description that each Kubernetes release carries in its own Go module, and the one of
HTTPRoute from the Gateway API's. Both are fetched once through the Go module proxy, trimmed, and kept in the cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from levada.cluster.cache import cache as cluster_cache
from levada.cluster.progress import Console
from levada.cluster.toolchain import go

VERSIONS = ("1.34.4", "1.35.4", "1.36.3", "1.37.2")
GATEWAY_API = "1.6.3"
HTTP_ROUTE_CRD = "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"
# Raised when what is kept changes, so that an older cache is made again.
FORMAT = 1

Json = Any


def problems(version: str, manifest: dict[str, Json]) -> list[str]:
    """Say what the API server of `version` would not know or not accept in `manifest`; nothing when it is valid."""
    kind = f"{manifest.get('apiVersion')}/{manifest.get('kind')}"
    if kind not in _api(version)["kinds"]:
        return [f"{kind} is not served by Kubernetes {version}"]
    errors: Iterator[Any] = _validator(version, kind).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in errors]


def namespaced(manifest: dict[str, Json]) -> bool:
    """Whether objects of this kind live in a namespace."""
    return f"{manifest['apiVersion']}/{manifest['kind']}" in _api(VERSIONS[-1])["namespaced"]


@cache
def _validator(version: str, kind: str) -> Any:
    api = _api(version)
    return jsonschema_rs.Draft7Validator({"$ref": api["kinds"][kind], "definitions": api["definitions"]})


@cache
def _api(version: str) -> dict[str, Json]:
    file = cluster_cache() / "openapi" / f"{version}-{GATEWAY_API}-{FORMAT}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            swagger = json.loads(_module_file("k8s.io/kubernetes", version, "api/openapi-spec/swagger.json", scratch))
            crd = yaml.safe_load(_module_file("sigs.k8s.io/gateway-api", GATEWAY_API, HTTP_ROUTE_CRD, scratch))
            made = Path(scratch) / file.name
            made.write_text(json.dumps(_trim(swagger, crd)))
            made.rename(file)
    api: dict[str, Json] = json.loads(file.read_text())
    return api


def _module_file(module: str, version: str, path: str, scratch: str) -> bytes:
    """Read one file of a Go module, and leave nothing else of the module behind."""
    modules = Path(scratch) / "modules"
    env = {**os.environ, "GOMODCACHE": str(modules), "GOFLAGS": "-modcacherw"}
    asked = f"{module}@v{version}"
    try:
        command = [str(go(Console())), "mod", "download", "-json", asked]
        done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"go mod download {asked} failed: {done.stdout}{done.stderr}")
        with zipfile.ZipFile(json.loads(done.stdout)["Zip"]) as archive:
            return archive.read(f"{asked}/{path}")
    finally:
        shutil.rmtree(modules, ignore_errors=True)


def _trim(swagger: dict[str, Json], http_route: dict[str, Json]) -> dict[str, Json]:
    """Keep the types, closed, and by which kinds they are reached."""
    definitions = {name: _close(schema) for name, schema in swagger["definitions"].items()}
    # The description calls both plain strings; the server reads numbers as well.
    definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = {"type": ["string", "integer"]}
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    kinds = {
        _kind(gvk): f"#/definitions/{name}"
        for name, schema in swagger["definitions"].items()
        for gvk in schema.get("x-kubernetes-group-version-kind", ())
    }
    in_namespaces = {
        _kind(operation["x-kubernetes-group-version-kind"])
        for path, operations in swagger["paths"].items()
        if "/namespaces/{namespace}/" in path
        for operation in operations.values()
        if isinstance(operation, dict) and "x-kubernetes-group-version-kind" in operation
    }
    group, kind = http_route["spec"]["group"], http_route["spec"]["names"]["kind"]
    for version in http_route["spec"]["versions"]:
        if version["served"]:
            route = _close(version["schema"]["openAPIV3Schema"])
            route["properties"]["metadata"] = {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
            name = f"{group}/{version['name']}/{kind}"
            definitions[name] = route
            kinds[name] = f"#/definitions/{name.replace('/', '~1')}"
            in_namespaces.add(name)
    return {"definitions": definitions, "kinds": kinds, "namespaced": sorted(in_namespaces)}


def _kind(gvk: dict[str, str]) -> str:
    return "/".join(part for part in (gvk["group"], gvk["version"], gvk["kind"]) if part)


def _close(schema: Json) -> Json:
    """Refuse unknown fields at every depth, and drop what only people read."""
    kept = {key: value for key, value in schema.items() if key != "description" and not key.startswith("x-kubernetes")}
    if "properties" in kept:
        kept["properties"] = {name: _close(inner) for name, inner in kept["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _close(kept[key])
    if schema.get("x-kubernetes-int-or-string"):
        kept = {"type": ["string", "integer"]}
    return kept
