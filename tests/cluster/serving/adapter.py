"""The custom metrics API of pods, by one rule of prometheus-adapter's form. Runs in a pod of the predictor's image.

``python adapter.py PROMETHEUS FOLDER``: answers on port 6443 with what the Prometheus at that URL says. The folder has
the rule in ``rules.yaml``, and ``tls.crt`` and ``tls.key`` to serve with.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import yaml

_PORT: Final = 6443
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_VERSION: Final = "custom.metrics.k8s.io/v1beta2"
_ROOT: Final = ["apis", *_VERSION.split("/")]


class Adapter:
    """One rule, asked of Prometheus."""

    def __init__(self, rule: Mapping[str, Any], prometheus: str) -> None:
        self._rule = rule
        self._prometheus = httpx.Client(base_url=prometheus)
        self._api = httpx.Client(
            base_url="https://kubernetes.default.svc",
            headers={"Authorization": f"Bearer {(_ACCOUNT / 'token').read_text()}"},
            verify=ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt")),
        )

    def answer(self, path: list[str], selector: str) -> dict[str, Any] | None:
        """What is at a path of the API; None: nothing."""
        match path:
            case []:
                return self._resources()
            case ["namespaces", namespace, "pods", "*", name] if name == self._rule["name"]["as"]:
                return self._values(namespace, selector)
            case _:
                return None

    def _resources(self) -> dict[str, Any]:
        found = self._get(self._prometheus, "/api/v1/series", **{"match[]": self._rule["seriesQuery"]})["data"]
        resource = {
            "name": f"pods/{self._rule['name']['as']}", "singularName": "", "namespaced": True,
            "kind": "MetricValueList", "verbs": ["get"],
        }  # fmt: skip
        resources = [resource] if found else []
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": _VERSION, "resources": resources}

    def _values(self, namespace: str, selector: str) -> dict[str, Any]:
        pods = self._get(self._api, f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)["items"]
        labels = {each["resource"]: label for label, each in self._rule["resources"]["overrides"].items()}
        names = "|".join(pod["metadata"]["name"] for pod in pods)
        query: str = self._rule["metricsQuery"]
        for marked, text in {
            "Series": self._rule["seriesQuery"].partition("{")[0],
            "LabelMatchers": f'{labels["namespace"]}="{namespace}",{labels["pod"]}=~"{names}"',
            "GroupBy": labels["pod"],
        }.items():
            query = query.replace(f"<<.{marked}>>", text)
        items = []
        for each in self._get(self._prometheus, "/api/v1/query", query=query)["data"]["result"]:
            pod, (at, value) = each["metric"][labels["pod"]], each["value"]
            print(pod, value, flush=True)
            items.append(
                {
                    "describedObject": {"kind": "Pod", "apiVersion": "/v1", "namespace": namespace, "name": pod},
                    "metric": {"name": self._rule["name"]["as"]},
                    "timestamp": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "value": f"{float(value) * 1000:.0f}m",
                }
            )
        return {"kind": "MetricValueList", "apiVersion": _VERSION, "metadata": {}, "items": items}

    @staticmethod
    def _get(client: httpx.Client, path: str, **query: str) -> dict[str, Any]:
        told: dict[str, Any] = client.get(path, params=query).raise_for_status().json()
        return told


def main(prometheus: str, folder: Path) -> None:
    (rule,) = yaml.safe_load((folder / "rules.yaml").read_text())["rules"]
    adapter = Adapter(rule, prometheus)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            steps = unquote(asked.path).strip("/").split("/")
            selector = parse_qs(asked.query).get("labelSelector", [""])[0]
            found = adapter.answer(steps[3:], selector) if steps[:3] == _ROOT else None
            body = json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    server = ThreadingHTTPServer(("0.0.0.0", _PORT), Handler)  # noqa: S104
    # A handshake belongs to its connection's thread: one that is slow keeps no other waiting.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
