"""Three nodes: each a zone with its share of the machine, and what is done to one of them in a drill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from levada.cluster import Cluster, ClusterError, Console, Direction, addons, cgroups, down, network, oci, sharing, up
from levada.cluster.plan import STATE

from .traces import assert_no_trace

NAME = "levada-nodes-test"
NODES = (1, 2, 3)
SERVICE = "web.web.svc.cluster.local"
WEB = """
apiVersion: v1
kind: Namespace
metadata: {{name: web}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web, namespace: web}}
spec:
  serviceName: web
  replicas: 3
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: web}}}}
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - topologyKey: topology.kubernetes.io/zone
          maxSkew: 1
          whenUnsatisfiable: DoNotSchedule
          labelSelector: {{matchLabels: {{app: web}}}}
      containers:
        - name: web
          image: {image}
          command: [sh, -c, "ls /data/index.html || echo $HOSTNAME of $NODE > /data/index.html; exec httpd -f -p 8080 -h /data"]
          env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
          volumeMounts: [{{name: data, mountPath: /data}}]
"""  # noqa: E501


def wait_for(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until a condition holds; errors count as not yet."""
    start = time.monotonic()
    while True:
        last = "the condition is false"
        try:
            if condition():
                return time.monotonic() - start
        except (ClusterError, httpx.HTTPError) as error:
            last = str(error)
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {last}"
        time.sleep(0.3)


def levada(*words: str) -> str:
    """What `levada cluster …` prints for this cluster."""
    argv = [Path(sys.executable).with_name("levada"), "cluster", *words, "--name", NAME]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes that has grown to three."""
    down(NAME, Console())
    up(NAME, Console(), node_count=2)
    yield up(NAME, Console(), node_count=3)
    down(NAME, Console())


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """By number of the node: address of a web server on it, whose page tells its name and node from its volume."""
    archive = oci.write(
        tmp_path_factory.mktemp("images"),
        name="levada/web",
        tag="1",
        files={"bin/busybox": addons.busybox()},
        links={f"bin/{name}": "busybox" for name in ("sh", "ls", "httpd")},
        entrypoint=["/bin/sh"],
    )
    assert cluster.import_images([archive]) == ["levada/web:1"]
    cluster.kubectl("apply", "-f", "-", stdin=WEB.format(image=archive.reference))
    cluster.kubectl("rollout", "status", "statefulset/web", "-n", "web", "--timeout=60s", timeout=70)
    return {node: pod["status"]["podIP"] for node, pod in by_node(cluster).items()}


def by_node(cluster: Cluster) -> dict[int, dict]:
    """The web server's pods by the number of their node."""
    found = cluster.kubectl.items("pods", "-n", "web")
    return {int(pod["spec"]["nodeName"].removeprefix(f"{NAME}-")): pod for pod in found}


def inside(namespace: str | Path, script: str, *words: str) -> list[str]:
    """Words that run a Python script in a network namespace."""
    return ["nsenter", f"--net={namespace}", sys.executable, "-I", "-c", script, *words]


def in_pod(cluster: Cluster, node: int, script: str, *words: str) -> str:
    """What a Python script prints in the network of the pod on a node."""
    name = by_node(cluster)[node]["metadata"]["name"]
    namespace = f"/proc/{cluster.faults.processes('web', name)['web'][0]}/ns/net"
    done = subprocess.run(inside(namespace, script, *words), capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip()


def get(cluster: Cluster, origin: int, address: str, port: int = 8080) -> str:
    """The page that the pod on a node gets from an address; an empty text if nothing comes within a second."""
    fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=1).read().decode())"
    return in_pod(cluster, origin, fetch, f"http://{address}:{port}/")


def resolve(cluster: Cluster, origin: int, name: str) -> str:
    """The address of a name, asked for once from the pod on a node; an empty text if no answer comes in a second."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = b"\0\1" + b"\1\0" + b"\0\1" + bytes(6) + labels + b"\0" + b"\0\1\0\1"
    ask = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(1); "
        "s.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 53)); print(socket.inet_ntoa(s.recv(512)[-4:]))"
    )
    return in_pod(cluster, origin, ask, str(cluster.plan.dns_service), query.hex())


def arrives(cluster: Cluster, origin: int, to: int) -> bool:
    """Whether one packet that a node sends comes to another: unlike a request, it needs no way back."""
    sender, receiver = cluster.plan.nodes[origin - 1], cluster.plan.nodes[to - 1]
    receive = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind((sys.argv[1], 9)); "
        "print('open', flush=True); s.settimeout(0.7); s.recv(9); print('here')"
    )
    send = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 9))"
    ear = subprocess.Popen(
        inside(network.NAMESPACES / receiver.name, receive, str(receiver.address)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with ear:
        assert ear.stdout is not None
        ear.stdout.readline()
        subprocess.run(inside(network.NAMESPACES / sender.name, send, str(receiver.address)), check=True)
        return "here" in ear.stdout.read()


def pages(url: str, count: int = 12) -> set[str]:
    """The different answers to some requests to a forwarded port."""
    return {httpx.get(url, timeout=10).text.strip() for _ in range(count)}


def test_every_node_is_ready_and_a_zone_of_its_own(cluster: Cluster) -> None:
    assert not cluster.status().trouble
    labels = [node["metadata"]["labels"] for node in cluster.kubectl.items("nodes")]
    assert [label["topology.kubernetes.io/zone"] for label in labels] == ["a", "b", "c"]
    assert {label["topology.kubernetes.io/region"] for label in labels} == {"local"}


def test_the_nodes_together_offer_the_machine_once(cluster: Cluster) -> None:
    offered = [node["status"]["allocatable"] for node in cluster.kubectl.items("nodes")]
    cores = os.cpu_count() or 1
    assert cores * 1000 - 3 <= sum(int(node["cpu"].removesuffix("m")) for node in offered) <= cores * 1000
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # each node keeps 200 MiB below which it evicts
    share = sum(int(node["memory"].removesuffix("Ki")) * 1024 for node in offered)
    assert memory - 3 * (201 << 20) <= share <= memory


def test_a_cluster_keeps_its_number_of_nodes_and_does_not_shrink(cluster: Cluster) -> None:
    assert up(NAME, Console()).plan.node_count == 3
    with pytest.raises(ClusterError, match=r"does not shrink to 1.*levada cluster down"):
        up(NAME, Console(), node_count=1)


def test_pods_spread_over_the_zones_and_reach_each_other(cluster: Cluster, pods: dict[int, str]) -> None:
    assert set(pods) == set(NODES)
    zones = [by_node(cluster)[node]["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in NODES]
    assert zones == ["a", "b", "c"]
    texts = {node: get(cluster, node, pods[node]) for node in NODES}
    assert all(texts[node].endswith(f"of {NAME}-{node}") for node in NODES)
    service = cluster.kubectl("get", "service", "web", "-n", "web", "-o", "jsonpath={.spec.clusterIP}")
    for origin in NODES:
        assert {get(cluster, origin, pods[to]) for to in NODES} == set(texts.values())
        assert resolve(cluster, origin, SERVICE) == service
    seen = {get(cluster, origin, service, 80) for origin in NODES for _ in range(6)}
    assert seen == set(texts.values())


def test_an_image_is_on_the_disk_once(cluster: Cluster, pods: dict[int, str]) -> None:
    programs = [list((node.directory / "containerd").rglob("fs/bin/busybox")) for node in cluster.plan.nodes]
    blobs = [
        [blob for blob in (node.directory / sharing.BLOBS).iterdir() if blob.stat().st_size > 1 << 20]
        for node in cluster.plan.nodes
    ]
    for files in (programs, blobs):
        inodes = [{path.stat().st_ino for path in on_node} for on_node in files]
        assert inodes[0]
        assert inodes[0] == inodes[1] == inodes[2]


def test_a_volume_belongs_to_its_node(cluster: Cluster, pods: dict[int, str]) -> None:
    volumes = cluster.kubectl.items("persistentvolumes")
    assert len(volumes) == 3
    for volume in volumes:
        expression = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]
        number = expression["values"][0].removeprefix(f"{NAME}-")
        page = Path(volume["spec"]["hostPath"]["path"]) / "index.html"
        assert page.is_relative_to(STATE / NAME / "nodes" / number)
        assert page.read_text().strip().endswith(f"of {NAME}-{number}")


@pytest.mark.parametrize(
    ("direction", "goes_in", "goes_out"),
    [(Direction.BOTH, False, False), (Direction.INBOUND, False, True), (Direction.OUTBOUND, True, False)],
)
def test_a_link_is_cut_both_ways_or_one(cluster: Cluster, direction: Direction, goes_in: bool, goes_out: bool) -> None:
    assert arrives(cluster, 1, 2)
    cluster.faults.cut(2, direction=direction)
    try:
        assert (arrives(cluster, 1, 2), arrives(cluster, 2, 1)) == (goes_in, goes_out)
        assert arrives(cluster, 1, 3)
        assert len(cluster.faults.active()) == 1
    finally:
        cluster.faults.heal(2)
    assert arrives(cluster, 1, 2)
    assert arrives(cluster, 2, 1)
    assert cluster.faults.active() == []


def test_a_link_is_cut_between_two_nodes_only(cluster: Cluster, pods: dict[int, str]) -> None:
    assert levada("cut", "2", "--peer", f"{NAME}-3") == f"{NAME}-2 and {NAME}-3 do not reach each other\n"
    assert get(cluster, 2, pods[3]) == ""
    assert get(cluster, 3, pods[2]) == ""
    for other in (2, 3):
        assert get(cluster, 1, pods[other])
    assert f"fault: {NAME}-2 and {NAME}-3 do not reach each other" in levada("status")
    assert levada("heal") == "no fault is in effect\n"
    assert get(cluster, 2, pods[3])


def test_a_node_cut_from_the_control_plane_goes_on_serving_its_peers(cluster: Cluster, pods: dict[int, str]) -> None:
    cluster.faults.cut(3, peers=["control"])
    try:
        assert get(cluster, 1, pods[3])
        with pytest.raises(ClusterError):
            cluster.kubectl("logs", by_node(cluster)[3]["metadata"]["name"], "-n", "web", timeout=2)
    finally:
        cluster.faults.heal(3)
    wait_for(lambda: cluster.kubectl("logs", by_node(cluster)[3]["metadata"]["name"], "-n", "web") is not None, 20)


def test_a_paused_node_stands_still_and_goes_on(cluster: Cluster, pods: dict[int, str]) -> None:
    kubelet = next(part.running for part in cluster.status().parts if part.machine.endswith("-2"))
    cluster.faults.pause(2)
    try:
        assert cluster.faults.active() == [f"{NAME}-2 is paused"]
        assert get(cluster, 1, pods[2]) == ""
    finally:
        cluster.faults.resume(2)
    assert get(cluster, 1, pods[2])
    after = next(part.running for part in cluster.status().parts if part.machine.endswith("-2"))
    assert kubelet is not None
    assert after is not None
    assert kubelet.pid == after.pid


def test_a_process_of_a_pod_is_killed_by_its_id(cluster: Cluster, pods: dict[int, str]) -> None:
    name = by_node(cluster)[3]["metadata"]["name"]
    first, *_ = cluster.faults.processes("web", name)["web"]
    assert b"httpd" in Path(f"/proc/{first}/cmdline").read_bytes()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: cluster.faults.processes("web", name).get("web", [first])[:1] not in ([], [first]), 30)
    assert by_node(cluster)[3]["status"]["containerStatuses"][0]["restartCount"] == 1


def test_a_container_without_a_limit_of_memory_is_left_alone(cluster: Cluster, pods: dict[int, str]) -> None:
    with pytest.raises(ClusterError, match="has no limit of memory"):
        cluster.faults.exhaust("web", by_node(cluster)[1]["metadata"]["name"], "web")


def test_a_volume_is_full_on_a_small_disk_and_moves_back(cluster: Cluster, pods: dict[int, str]) -> None:
    name = by_node(cluster)[2]["metadata"]["name"]

    def process() -> int:
        return next(iter(cluster.faults.processes("web", name).get("web", [])), 0)

    def write(file: str, size: int) -> None:
        (Path(f"/proc/{process()}/root/data") / file).write_bytes(bytes(size))

    before = process()
    with pytest.raises(ClusterError, match="this machine's own is never filled"):
        cluster.faults.fill("web", name)
    cluster.faults.shrink("web", name, room=1 << 20)
    try:
        wait_for(lambda: process() not in (0, before), 30)
        wait_for(lambda: get(cluster, 1, pods[2]), 10)
        small = process()
        write("small", 1 << 19)
        cluster.faults.fill("web", name)
        with pytest.raises(OSError, match="No space left"):
            write("more", 1 << 19)
        assert len(cluster.faults.active()) == 1
    finally:
        cluster.faults.widen(2)
    wait_for(lambda: process() not in (0, small), 30)
    write("more", 1 << 20)
    data = Path(f"/proc/{process()}/root/data")
    assert {file.name for file in data.iterdir()} == {"index.html", "small", "more"}
    assert cluster.faults.active() == []


def test_a_lost_node_is_seen_others_serve_and_it_comes_back_with_its_data(
    cluster: Cluster, pods: dict[int, str]
) -> None:
    url = f"http://127.0.0.1:{cluster.forward('web', 'web', 80)}/"
    wait_for(lambda: len(pages(url)) == 3, 20)
    assert levada("kill", "1") == f"{NAME}-1 is off\n"
    assert not list(cgroups.processes(cluster.plan.nodes[0].cgroup))
    # at once, when nobody knows yet: outsiders get an answer, and pods elsewhere names
    assert pages(url, 4)
    assert all(resolve(cluster, node, SERVICE) for node in (2, 3) for _ in range(4))
    node = ("get", "node", f"{NAME}-1", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
    assert wait_for(lambda: cluster.kubectl(*node) == "Unknown", 40) > 5
    wait_for(lambda: len(pages(url)) == 2, 10)
    assert (
        "NOT ready"
        in subprocess.run(
            [Path(sys.executable).with_name("levada"), "cluster", "status", "--name", NAME],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    )
    start = time.monotonic()
    assert levada("start", "1") == "no fault is in effect\n"
    wait_for(lambda: len(pages(url)) == 3, 60)
    assert time.monotonic() - start < 60
    assert {text.rpartition("-")[2] for text in pages(url, 24)} == {"1", "2", "3"}
    wait_for(lambda: not cluster.status().trouble, 60)


def test_a_node_that_starts_again_has_no_links_of_earlier_pods(cluster: Cluster, pods: dict[int, str]) -> None:
    """Else a new pod would share the route of an earlier one with its address, and lose it with that one's link."""
    node = cluster.plan.nodes[0]
    ip = ["ip", "-netns", node.name]
    subprocess.run([*ip, "link", "add", "veth0badf00d", "type", "veth", "peer", "name", "veth1badf00d"], check=True)
    cgroups.kill(node.cgroup)
    assert levada("start", "1") == "no fault is in effect\n"
    wait_for(lambda: not cluster.status().trouble, 60)
    links = subprocess.run([*ip, "-brief", "link"], check=True, capture_output=True, text=True).stdout
    assert "badf00d" not in links
    assert "eth0" in links
    url = f"http://127.0.0.1:{cluster.forward('web', 'web', 80)}/"
    wait_for(lambda: len(pages(url)) == 3, 60)


def test_up_undoes_every_fault(cluster: Cluster, pods: dict[int, str]) -> None:
    break_all(cluster)
    up(NAME, Console())
    assert cluster.faults.active() == []
    cluster.kubectl("rollout", "status", "statefulset/web", "-n", "web", "--timeout=60s", timeout=70)


def test_down_works_in_any_fault_and_leaves_nothing(cluster: Cluster, pods: dict[int, str]) -> None:
    break_all(cluster)
    down(NAME, Console())
    assert_no_trace(NAME)


def break_all(cluster: Cluster) -> None:
    """One node off, one paused, one cut and with a full disk."""
    volume = ("web", by_node(cluster)[3]["metadata"]["name"])
    cluster.faults.shrink(*volume, room=1 << 20)
    cluster.faults.fill(*volume)
    cluster.faults.kill(1)
    cluster.faults.pause(2)
    cluster.faults.cut(3, direction=Direction.INBOUND)
    assert len(cluster.faults.active()) == 4
