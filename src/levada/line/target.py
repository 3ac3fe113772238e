"""Where a line is installed and how to reach it: a kube context, a namespace and a release."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from levada.cluster import Cluster, ClusterError
from levada.errors import UserError
from levada.pipeline import Pipeline, parse_pipeline

_TRANSIENT = (httpx.TransportError,)


class LineError(UserError):
    """What went wrong on the line and what to do."""


class Endpoint:
    """HTTP to one Service of the line; rides out a pod that is being replaced."""

    def __init__(self, target: Target, service: str, port: int) -> None:
        self._target, self._service, self._port = target, service, port
        self._client = httpx.Client(timeout=30)

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        retry_for: float = 60,
        retry_statuses: tuple[int, ...] = (502, 503),
        **options: Any,
    ) -> httpx.Response:
        """One answer; connection errors and ``retry_statuses`` are tried again for ``retry_for`` seconds.

        Raises:
            LineError: nothing but connection errors until then.
        """
        deadline = time.monotonic() + retry_for
        while True:
            try:
                url = self._target.url(self._service, self._port) + path
                answer = self._client.request(method, url, **options)
                if answer.status_code not in retry_statuses or time.monotonic() > deadline:
                    return answer
            except _TRANSIENT as error:
                if time.monotonic() > deadline:
                    raise LineError(f"{self._service}:{self._port} does not answer: {error}") from error
            time.sleep(0.5)


@dataclass
class Target:
    """One installed (or to be installed) release."""

    kubectl_binary: Path
    helm_binary: Path
    context: str
    kubeconfig: Path | None = None
    """None: the user's own kubeconfig."""
    cluster: Cluster | None = None
    """Set when this machine's own cluster is the target."""
    namespace: str = "levada"
    release: str = "levada"
    _forwards: dict[tuple[str, int], tuple[subprocess.Popen[str], str]] = field(default_factory=dict, init=False)
    _endpoints: dict[tuple[str, int], Endpoint] = field(default_factory=dict, init=False)

    @property
    def environment(self) -> dict[str, str]:
        """Environment for kubectl and helm."""
        own = {} if self.kubeconfig is None else {"KUBECONFIG": str(self.kubeconfig)}
        return {**os.environ, **own}

    def name(self, component: str) -> str:
        """Name of an object of the release, such as ``levada-collector``."""
        return f"{self.release}-{component}"

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Output of kubectl in the line's namespace.

        Raises:
            LineError: with what kubectl said.
        """
        command = [str(self.kubectl_binary), "--context", self.context, "--namespace", self.namespace, *arguments]
        try:
            done = subprocess.run(
                command, env=self.environment, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LineError(f"kubectl {' '.join(arguments[:3])} took more than {timeout:g} s") from error
        if done.returncode != 0:
            raise LineError(f"kubectl {' '.join(arguments[:3])}: {done.stderr.strip()}")
        return done.stdout

    def objects(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of the release, of one kind (or several, comma-separated)."""
        labels = ",".join(filter(None, [f"app.kubernetes.io/instance={self.release}", selector]))
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-l", labels, "-o", "json"))["items"]
        return items

    def secret(self, component: str, key: str) -> str:
        """One value of a Secret of the release."""
        secret = json.loads(self.kubectl("get", "secret", self.name(component), "-o", "json"))
        return base64.b64decode(secret["data"][key]).decode()

    def pipelines(self) -> dict[str, Pipeline]:
        """The pipelines that the release declares."""
        held = json.loads(self.kubectl("get", "configmap", self.name("pipelines"), "-o", "json")).get("data", {})
        return {
            (name := file.removesuffix(".json")): parse_pipeline(json.loads(text), name) for file, text in held.items()
        }

    def pipeline(self, name: str) -> Pipeline:
        """One declared pipeline.

        Raises:
            LineError: there is none of that name.
        """
        pipelines = self.pipelines()
        if name not in pipelines:
            raise LineError(f"pipeline {name} is not declared; declared are {', '.join(pipelines) or 'none'}")
        return pipelines[name]

    def pod_metrics(self, pod: str, port: int = 8090) -> str:
        """The ``/metrics`` page of a pod, through the API server."""
        return self.kubectl("get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{port}/proxy/metrics")

    def endpoint(self, component: str, port: int) -> Endpoint:
        """HTTP to the Service of a component; its connections live until :meth:`close`."""
        if (component, port) not in self._endpoints:
            self._endpoints[component, port] = Endpoint(self, self.name(component), port)
        return self._endpoints[component, port]

    def url(self, service: str, port: int) -> str:
        """A URL on 127.0.0.1 that reaches the Service now.

        Raises:
            LineError: there is no such Service, or no way to it.
        """
        if self.cluster is not None:
            try:
                return f"http://127.0.0.1:{self.cluster.forward(self.namespace, service, port)}"
            except ClusterError as error:
                raise LineError(str(error)) from error
        forward = self._forwards.get((service, port))
        if forward is None or forward[0].poll() is not None:
            forward = self._forwards[service, port] = self._port_forward(service, port)
        return forward[1]

    def _port_forward(self, service: str, port: int) -> tuple[subprocess.Popen[str], str]:
        command = [str(self.kubectl_binary), "--context", self.context, "--namespace", self.namespace]
        process = subprocess.Popen(
            [*command, "port-forward", "--address", "127.0.0.1", f"service/{service}", f":{port}"],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline() if process.stdout else "")
        if found is None:
            process.terminate()
            raise httpx.ConnectError(process.communicate()[1].strip())
        return process, f"http://127.0.0.1:{found[1]}"

    def close(self) -> None:
        """End the connections and port-forwards of this process; the forwards of the own cluster stay."""
        for endpoint in self._endpoints.values():
            endpoint.close()
        self._endpoints.clear()
        for process, _ in self._forwards.values():
            process.terminate()
            process.wait()
        self._forwards.clear()


def find(*, cluster: str, context: str | None, namespace: str = "levada", release: str = "levada") -> Target:
    """The target a command means: the kube context if one is given, else this machine's cluster of that name.

    Raises:
        LineError: the context's tools are missing.
        ClusterError: no context is given and there is no such cluster.
    """
    if context:
        binaries = {tool: shutil.which(tool) for tool in ("kubectl", "helm")}
        missing = [tool for tool, path in binaries.items() if path is None]
        if missing:
            raise LineError(f"CONTEXT is given, but {' and '.join(missing)} cannot be found on PATH: install it")
        return Target(
            Path(str(binaries["kubectl"])), Path(str(binaries["helm"])), context, namespace=namespace, release=release
        )
    own = Cluster(cluster)
    return Target(
        own.binary("kubectl"), own.binary("helm"), cluster, own.kubeconfig, own, namespace=namespace, release=release
    )


def ready_pods(pods: Sequence[Mapping[str, Any]]) -> int:
    """How many of the pods are ready."""
    return sum(
        any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
        for conditions in (pod["status"].get("conditions", []) for pod in pods)
    )
