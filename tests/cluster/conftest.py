"""One line for the whole layer: a cluster of its own name, the chart installed by a namespace's admin.

Everything the tests do goes through what that admin may do and through HTTP on 127.0.0.1. Set KEEP=1 to keep the
cluster after the run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from levada import cluster as clusters
from levada.cluster import images
from levada.cluster.progress import Console
from levada.line import install
from levada.line.demo import Demo, Report, lake_state, read_rows
from levada.line.status import read
from levada.line.target import Target, find, ready_pods

NAME = "levada-test"
KEEP = os.environ.get("KEEP") == "1"
ORDER = ("cluster/", "ingest/test_broker", "ingest/test_controllers", "drills/", "test_install", "test_demo", "ingest",
         "stream", "batch", "registry", "serving", "test_pipelines", "test_docs", "test_faults",
         "test_uninstall")  # fmt: skip
"""What later tests build on comes first; what takes the line apart comes last."""
_INSTALLER = """
apiVersion: v1
kind: Namespace
metadata: {name: levada, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: installer, namespace: levada}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: installer, namespace: levada}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects: [{kind: ServiceAccount, name: installer, namespace: levada}]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        path = item.nodeid.removeprefix("tests/cluster/")
        return next((n for n, part in enumerate(ORDER) if path.startswith(part)), -1)

    items.sort(key=place)


@dataclass
class Line:
    """The installed line, as its tests see it."""

    target: Target
    admin: Target
    """The same release with the rights of a cluster admin, for looking, and for what no namespace holds."""
    values: list[Path]

    @cached_property
    def api_key(self) -> str:
        """Key that the collector takes."""
        return self.target.secret("api-key", "key")

    @property
    def collector_url(self) -> str:
        """Base URL of the collector."""
        return self.target.url(self.target.name("collector"), 8080)

    @property
    def mlflow_url(self) -> str:
        """Base URL of MLflow."""
        return self.target.url(self.target.name("mlflow"), 5000)

    def predictor_url(self, pipeline: str) -> str:
        """Base URL of a pipeline's predictor."""
        return self.target.url(self.target.name(f"predictor-{pipeline}"), 8080)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Output of kubectl in the line's namespace."""
        return self.target.kubectl(*arguments, stdin=stdin, timeout=timeout)

    def exec(self, workload: str, *command: str, container: str | None = None, timeout: float = 120) -> str:
        """Output of a command in a pod of ``deployment/<name>`` or ``statefulset/<name>``."""
        picked = [] if container is None else ["--container", container]
        return self.kubectl("exec", workload, *picked, "--", *command, timeout=timeout)

    def demo(self, pipeline: str = "iris", data: Path | None = None) -> Report:
        """Run the demo; raises HopError as the command does."""
        declared = self.target.pipeline(pipeline)
        rows = read_rows(data or install.ROOT / "examples" / pipeline / f"{pipeline}.csv", declared)
        return Demo(self.target, declared, rows, lambda text: print(text, flush=True)).run()

    def rows(self, pipeline: str) -> int:
        """Rows in the lake table of a pipeline, as its sink tells."""
        return lake_state(self.target, pipeline)[1]

    def install(self, *more: Path) -> None:
        """Upgrade with the layer's values and ``more`` after them."""
        install.install(self.target, [*self.values, *more], lambda text: print(text, flush=True))

    def pods(self) -> dict[str, dict[str, Any]]:
        """The pods of long-running workloads, by name."""
        pods = self.target.objects("pods")
        owned = [p for p in pods if p["metadata"].get("ownerReferences", [{}])[0].get("kind") != "Job"]
        return {p["metadata"]["name"]: p for p in owned if p["metadata"].get("ownerReferences")}

    def wait_until_ready(self, timeout: float = 120) -> float:
        """Wait until every component is ready; the seconds it took."""
        return wait_for(lambda: read(self.target).ready and all(ready_pods([p]) for p in self.pods().values()), timeout)

    def post(self, pipeline: str, **options: Any) -> httpx.Response:
        """Post to the collector with the right key, unless ``headers`` are given."""
        options.setdefault("headers", {"Authorization": f"Bearer {self.api_key}"})
        return httpx.post(f"{self.collector_url}/v1/{pipeline}/events", timeout=30, **options)


def wait_for(condition: Callable[[], Any], timeout: float) -> float:
    """Seconds until the condition holds; fails the test after ``timeout``."""
    started = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - started
        except Exception as error:  # a pod, a Service or the API may be away for a moment: that is what is waited for
            last: object = error
        else:
            last = "the condition is false"
        if time.monotonic() - started > timeout:
            pytest.fail(f"not within {timeout:g} s: {last}")
        time.sleep(0.5)


@contextmanager
def installed(cluster: str, values: Sequence[Path], nodes: int = 1) -> Iterator[Line]:
    """A cluster of that name with the chart installed by a namespace's admin; taken down at the end."""
    progress = Console()
    if not KEEP:  # what an earlier run left when it was killed; a kept cluster is taken as it is
        clusters.down(cluster, progress)
    own = clusters.up(cluster, progress, node_count=nodes)
    try:
        built = images.build(None, progress)
        own.import_images(built)
        admin = find(cluster=cluster, context=None)
        admin.kubectl("apply", "-f", "-", stdin=_INSTALLER)
        target = replace(admin, kubeconfig=_kubeconfig(admin, own.state / "installer.kubeconfig"))
        files = [*values, install.write_values(own.state / "images.yaml", images.values(built))]
        made = Line(target, admin, files)
        made.install()
        yield made
        target.close()
    finally:
        if not KEEP:
            clusters.down(cluster, progress)


@pytest.fixture(scope="session")
def line() -> Iterator[Line]:
    """Bring the line up once for all tests of the layer but the drills, which break a cluster of their own."""
    with installed(NAME, install.DEFAULT_VALUES) as made:
        yield made


@pytest.fixture(scope="session")
def champion(line: Line) -> None:
    """A model of iris that is served; the demo's, where no test before has made one."""
    if httpx.get(f"{line.predictor_url('iris')}/version", timeout=30).status_code != 200:
        line.demo()


def _kubeconfig(admin: Target, path: Path) -> Path:
    token = admin.kubectl("create", "token", "installer", "--duration", "12h").strip()
    assert admin.kubeconfig is not None
    config = yaml.safe_load(admin.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def kube_config(line: Line) -> str:
    """For pytest-helm-charts: the cluster of the line, as the namespace's admin."""
    return str(line.target.kubeconfig)


@pytest.fixture(scope="module")
def cluster_type() -> str:
    """For pytest-helm-charts: the cluster is there already."""
    return "existing"
