"""The source-built cluster itself: what is killed comes back with its data, what is taken down leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from levada.cluster import Cluster, ClusterError, Console, addons, cgroups, down, machines, network, oci, up
from levada.cluster.plan import STATE

from .traces import assert_no_trace

NAME = "levada-cluster-test"
WEB = """
apiVersion: v1
kind: Namespace
metadata: {{name: web, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data, namespace: web}}
spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      securityContext: {{runAsNonRoot: true, runAsUser: 10001, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
        - name: web
          image: {pinned}
          command: [sh, -c, "ls /data/index.html || echo $HOSTNAME > /data/index.html; exec httpd -f -p 8080 -h /data"]
          securityContext: &restricted
            {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
          volumeMounts: [{{name: data, mountPath: /data}}]
        - {{name: by-tag, image: "{tagged}", command: [sleep, infinity], securityContext: *restricted}}
      volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]
"""


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds; errors count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (ClusterError, httpx.HTTPError) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s") from error
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)


def kill_everything(cluster: Cluster) -> None:
    """Kill every process of the cluster by its id, as when power is lost."""
    for pid in list(cgroups.processes(cluster.plan.cgroup)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_for(lambda: not list(cgroups.processes(cluster.plan.cgroup)), 10)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster, after a first `up` that was killed half-way and left what it left."""
    down(NAME, Console())
    with subprocess.Popen([Path(sys.executable).with_name("levada"), "cluster", "up", "--name", NAME]) as half:
        wait_for(lambda: (STATE / NAME / "nodes" / "1" / "containerd.sock").exists(), 60)
        half.kill()
    yield up(NAME, Console())
    down(NAME, Console())


@pytest.fixture(scope="module")
def page(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A web server that keeps its first pod's name on a volume; its URL from outside and that name."""
    applets = {f"bin/{name}": "busybox" for name in ("sh", "ls", "httpd", "sleep", "cat")}
    archive = oci.write(
        tmp_path_factory.mktemp("images"),
        name="levada/web",
        tag="1",
        files={"bin/busybox": addons.busybox()},
        links=applets,
        entrypoint=["/bin/sh"],
    )
    assert cluster.import_images([archive]) == ["levada/web:1"]
    assert cluster.import_images([archive]) == []
    cluster.kubectl("apply", "-f", "-", stdin=WEB.format(pinned=archive.reference, tagged="levada/web:1"))
    cluster.kubectl("rollout", "status", "deployment/web", "-n", "web", "--timeout=60s", timeout=70)
    url = f"http://127.0.0.1:{cluster.forward('web', 'web', 80)}/"
    return url, httpx.get(url).text


def test_second_up_is_quick_and_touches_nothing(cluster: Cluster) -> None:
    before = cluster.status()
    start = time.monotonic()
    up(NAME, Console())
    assert time.monotonic() - start < 10
    after = cluster.status()
    assert not after.trouble
    assert [part.running and part.running.pid for part in after.parts] == [
        part.running and part.running.pid for part in before.parts
    ]


def test_the_server_is_of_the_version_that_was_built(cluster: Cluster) -> None:
    assert '"gitVersion": "v1.35.4"' in cluster.kubectl("get", "--raw", "/version")
    assert "v1.35.4" in cluster.kubectl("get", "nodes")


def test_logs_exec_top_and_port_forward_work(cluster: Cluster, page: tuple[str, str]) -> None:
    url, text = page
    assert "index.html" in cluster.kubectl("logs", "deployment/web", "-n", "web", "-c", "web") or text
    assert cluster.kubectl("exec", "deployment/web", "-n", "web", "-c", "web", "--", "cat", "/data/index.html") == text
    wait_for(lambda: "by-tag" in cluster.kubectl("top", "pod", "-n", "web", "--containers"), 60)
    assert cluster.name in cluster.kubectl("top", "node")
    argv = [
        cluster.binary("kubectl"),
        "--kubeconfig",
        cluster.kubeconfig,
        "-n",
        "web",
        "port-forward",
        "svc/web",
        ":80",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as forward:
        assert forward.stdout is not None
        port = forward.stdout.readline().split(":")[1].split()[0]
        assert httpx.get(f"http://127.0.0.1:{port}/").text == httpx.get(url).text
        forward.terminate()


def test_nobody_gets_in_without_a_certificate(cluster: Cluster) -> None:
    api = cluster.kubectl("config", "view", "--output", "jsonpath={.clusters[0].cluster.server}")
    trusted = ssl.create_default_context(cafile=str(cluster.state / "pki" / "ca.crt"))
    assert httpx.get(f"{api}/api", verify=trusted).status_code == 401
    node = cluster.plan.nodes[0]
    kubelet = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"https://{node.address}:10250/pods"]
    inside = ["nsenter", f"--net=/run/netns/{cluster.plan.control_namespace}"]
    assert subprocess.run([*inside, *kubelet], capture_output=True, text=True, check=True).stdout == "401"
    secrets = ["auth", "can-i", "list", "secrets", "--as", f"system:node:{node.name}", "--as-group", "system:nodes"]
    with pytest.raises(ClusterError):  # can-i answers no by its exit code
        cluster.kubectl(*secrets, "-n", "kube-system")


def test_what_runs_in_it_reaches_nothing_outside(cluster: Cluster) -> None:
    for namespace in network.namespaces(cluster.plan):
        routes = subprocess.run(["ip", "-netns", namespace, "route"], capture_output=True, text=True, check=True).stdout
        assert "default" not in routes


def test_every_listening_port_of_the_machine_is_on_loopback(cluster: Cluster, page: tuple[str, str]) -> None:
    pids = set(cgroups.processes(cluster.plan.cgroup))
    shown = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in shown.splitlines() if any(f"pid={pid}," in line for pid in pids)]
    assert ours
    assert all(line.split()[3].startswith("127.0.0.1:") for line in ours)


def test_a_forwarded_port_hands_on_the_end_of_either_side(cluster: Cluster, page: tuple[str, str]) -> None:
    port = cluster.forward("web", "web", 80)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.endswith(page[1].encode())


def test_a_forwarded_port_survives_the_service(cluster: Cluster, page: tuple[str, str]) -> None:
    url, text = page
    cluster.kubectl("delete", "service", "web", "-n", "web")
    cluster.kubectl("create", "service", "clusterip", "web", "-n", "web", "--tcp=80:8080")
    wait_for(lambda: httpx.get(url).text == text, 20)


def test_one_program_that_dies_is_started_again_and_pods_go_on(cluster: Cluster, page: tuple[str, str]) -> None:
    started = cluster.kubectl.items("pods", "-n", "web")[0]["status"]["containerStatuses"]
    for part in cluster.status().parts:
        if part.program in ("containerd", "kubelet", "etcd") and part.running:
            os.kill(part.running.pid, signal.SIGKILL)
    wait_for(lambda: not cluster.status().trouble, 60)
    assert httpx.get(page[0]).text == page[1]
    assert cluster.kubectl.items("pods", "-n", "web")[0]["status"]["containerStatuses"] == started


@pytest.mark.parametrize("lost", [False, True], ids=["processes", "processes and namespaces"])
def test_power_loss(cluster: Cluster, page: tuple[str, str], lost: bool) -> None:
    url, text = page
    kill_everything(cluster)
    if lost:
        for namespace in network.namespaces(cluster.plan):
            subprocess.run(["ip", "netns", "delete", namespace], check=True)
    assert cluster.status().trouble
    start = time.monotonic()
    up(NAME, Console())
    assert time.monotonic() - start < 90
    cluster.kubectl("rollout", "status", "deployment/web", "-n", "web", "--timeout=60s", timeout=70)
    wait_for(lambda: httpx.get(url).text == text, 60)


def test_down_leaves_nothing(cluster: Cluster, page: tuple[str, str]) -> None:
    port = cluster.forward("web", "web", 80)
    down(NAME, Console())
    assert_no_trace(NAME)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with pytest.raises(ClusterError, match="levada cluster up"):
        Cluster(NAME)
    assert machines.init(f"levada.{NAME}/control") is None
