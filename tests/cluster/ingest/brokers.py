"""Three real brokers as plain processes: the chart's settings, the image's jars, the pods' own preparation.

Each has a loopback address of its own (127.0.1.1, …), so that all use the same ports, as pods do.
"""

from __future__ import annotations

import io
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from levada.cluster import Console, images
from levada.cluster.cache import cache
from levada.cluster.images import Store
from levada.config import KafkaSettings
from levada.ingest import broker
from levada.ingest.broker import InSync, Node
from levada.ingest.topics import User
from tests.chart.render import render
from tests.debian import need

CLIENTS = ("collector", "sink", "predictor", "loader", "metrics")
_CLUSTER_ID = "threebrokersonloopba" + "AA"
_STOP_SECONDS = 120
"""What the chart gives a broker to stop in."""
_START_SECONDS = 120
"""For all nodes of a first start to have a process that answers."""
_FASTER = {"log.retention.check.interval.ms": "1000", "log.initial.task.delay.ms": "500"}
_QUICK = ("-Xmx224m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Quick to start: a test is over before a better compiler has paid for itself."""
AS_DEPLOYED = ("-Xms512m", "-Xmx512m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20")
"""The image's options with the chart's heap, for figures."""


def jars() -> Path:
    """Kafka's programs and jars out of the image that the chart runs, unpacked once."""
    need("java", "default-jre-headless")
    images.build(["kafka"], Console())
    built = Store(cache() / "images").last("kafka")
    assert built is not None
    folder = cache() / "unpacked" / f"kafka-{built.tag}"
    if not folder.exists():
        fresh = folder.with_name(f"{folder.name}.new")
        with tarfile.open(Store(cache() / "images").archive("kafka", built).path) as image:
            for blob in image.getmembers():
                if blob.size > 512 and (layer := image.extractfile(blob)) is not None:
                    _unpack(layer.read(), fresh)
        for old in folder.parent.glob("kafka-*"):
            if old != fresh:
                shutil.rmtree(old)
        fresh.rename(folder)
    return folder / "opt" / "kafka"


def _unpack(layer: bytes, into: Path) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            members = [each for each in tar.getmembers() if each.name.startswith("opt/kafka/")]
            tar.extractall(into, members, filter="data")
    except tarfile.ReadError:
        return  # The image's manifest, not a layer.


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What a condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(0.25)
    return found


@dataclass
class Load:
    """Numbered messages that one producer sends without pause, and what came of each."""

    sent: int = 0
    acknowledged: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0
    """Seconds of the longest time without any acknowledgement."""


class Brokers:
    """A cluster of one or three brokers, which are the controllers too or have three beside them, from 100 on."""

    def __init__(self, folder: Path, values: dict[str, Any], count: int = 3, jvm: Sequence[str] = _QUICK) -> None:
        self.folder, self.count, self.jvm, self.kafka = folder, count, jvm, jars()
        release = render(values=values)
        names = {n: f"levada-kafka-{n}.levada-kafka-brokers.levada.svc" for n in range(count)}
        separate = any(each["metadata"]["name"] == "levada-kafka-controller" for each in release.kind("ConfigMap"))
        if separate:
            domain = "levada-kafka-controllers.levada.svc"
            names |= {100 + n: f"levada-kafka-controller-{n}.{domain}" for n in range(3)}
        self.hosts = {node: f"127.0.{1 + node // 100}.{1 + node % 100}" for node in names}
        self._ports = {number: _port(list(self.hosts.values())) for number in (9092, 9093, 9094, 9404)}
        self.voters = tuple(node for node in names if node >= 100 or not separate)
        self._shared = {}
        for node in names:
            kind = "levada-kafka-controller" if node >= 100 else "levada-kafka"
            text: str = release.find("ConfigMap", kind)["data"]["server.properties"]
            for other, name in names.items():
                text = text.replace(name, self.hosts[other])
            for number, port in self._ports.items():
                text = re.sub(rf":{number}\b", f":{port}", text)
            # Pods listen on all of their addresses.
            text = text.replace("://:", f"://{self.hosts[node]}:").replace(
                "=/var/lib/kafka/data", f"={self.disk(node)}"
            )
            lines = [text.replace("/etc/kafka", str(folder)), *(f"{key}={value}" for key, value in _FASTER.items())]
            self._shared[node] = "\n".join(lines)
        for user in ("broker", "admin", *CLIENTS):
            (folder / "credentials" / user).mkdir(parents=True)
            for key, value in {"username": user, "password": secrets.token_urlsafe(24)}.items():
                (folder / "credentials" / user / key).write_text(value)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    # --- the nodes

    def disk(self, node: int) -> Path:
        return self.folder / str(node) / "data"

    def start(self, *nodes: int) -> None:
        """As the pods do it, all at the same time."""
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(self._start, nodes))

    def _start(self, node: int) -> None:
        host, own = self.hosts[node], self.folder / str(node)
        own.mkdir(exist_ok=True)
        (own / "shared").write_text(self._shared[node])
        voters = tuple(f"{self.hosts[each]}:{self._ports[9404]}" for each in self.voters if node in self.voters)
        deadline = time.monotonic() + _START_SECONDS

        def ask(voter: str) -> str:
            # A pod waits for the others without end; here one that did not come up is the end of the test.
            assert time.monotonic() < deadline, f"node {node} had no word of {voter}\n{self._ends_of_logs()}"
            return httpx.get(f"http://{voter}/metrics", timeout=5).raise_for_status().text

        broker.prepare(
            own / "shared", own, Node(node, host, f"zone-{node}", voters), _CLUSTER_ID, report=lambda _: None, ask=ask
        )
        self._run("tools", "kafka.tools.StorageTool", "format", f"--cluster-id={_CLUSTER_ID}", "--config",
                  str(own / "server.properties"), "--ignore-formatted", (own / "format").read_text())  # fmt: skip
        with (own / "log").open("ab") as log:
            self.processes[node] = subprocess.Popen(
                self._java("server", *self.jvm, main=("kafka.Kafka", str(own / "server.properties"))),
                stdout=log, stderr=log,
            )  # fmt: skip

    def _java(self, log: str, *options: str, main: Sequence[str]) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.kafka}/config/{log}-log4j2.yaml"
        return ["java", *options, logging, "-cp", f"{self.kafka}/libs/*", *main]

    def _run(self, log: str, *words: str) -> None:
        command = self._java(log, *_QUICK, main=words)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_SECONDS)
        assert done.returncode == 0, done.stderr

    def kill(self, node: int, *, wipe: bool = False) -> None:
        self.processes[node].kill()
        self.processes.pop(node).wait()
        if wipe:
            self.wipe(node)

    def wipe(self, node: int) -> None:
        shutil.rmtree(self.disk(node))

    def stop(self, node: int) -> float:
        """A clean stop; the seconds that it took."""
        began = time.monotonic()
        self.processes[node].send_signal(signal.SIGTERM)
        self.processes.pop(node).wait(_STOP_SECONDS)
        return time.monotonic() - began

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def log(self, node: int) -> str:
        return (self.folder / str(node) / "log").read_text()

    def _ends_of_logs(self) -> str:
        logs = {node: self.folder / str(node) / "log" for node in self.hosts}
        return "\n".join(f"--- node {node}\n{log.read_text()[-1000:]}" for node, log in logs.items() if log.exists())

    def raft(self, node: int) -> dict[str, float]:
        """What a node says of the quorum; nothing while it is not there."""
        try:
            page = httpx.get(f"http://{self.hosts[node]}:{self._ports[9404]}/metrics", timeout=5).text
        except httpx.HTTPError:
            return {}
        found = re.findall(r"^kafka_server_raft_metrics_(\w+) (\S+)$", page, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def directory(self, node: int) -> str:
        """The id of a node's disk."""
        (found,) = re.findall(r"directory\.id=(\S+)", (self.disk(node) / "meta.properties").read_text())
        return str(found)

    def in_sync(self, node: int) -> bool:
        """What `levada broker watch` would say of a broker that came up just now."""
        state = InSync(node)
        broker.look(state, self.admin, f"{self.hosts[node]}:{self._ports[9092]}")
        return state.caught_up

    def wait_in_sync(self, *nodes: int, seconds: float = 90) -> None:
        for node in nodes:
            until(lambda node=node: self.in_sync(node), seconds, f"broker {node} in sync")  # type: ignore[misc]

    # --- the clients

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{self.hosts[node]}:{self._ports[9092]}" for node in range(self.count))

    def settings(self, user: str) -> KafkaSettings:
        ca = self.folder / "tls" / "ca.crt"
        by_tls = {"protocol": "SASL_SSL", "ca": ca} if ca.exists() else {}
        return KafkaSettings(
            bootstrap=self.bootstrap,
            mechanism="PLAIN" if user == "admin" else "SCRAM-SHA-512",
            credentials=self.folder / "credentials" / user,
            replication_factor=self.count,
            **by_tls,
        )

    def client(self, user: str, **more: Any) -> dict[str, Any]:
        return {**self.settings(user).client(), "log_level": 0, **{k.replace("_", "."): v for k, v in more.items()}}

    @cached_property
    def admin(self) -> Any:
        """The admin's client; one is enough, it finds brokers that come back."""
        return AdminClient(self.client("admin"))

    def users(self) -> list[User]:
        return [User(name, name, (self.folder / "credentials" / name / "password").read_text()) for name in CLIENTS]

    def produce(self, user: str, topic: str, value: bytes, **options: Any) -> str | None:
        """Name of the error, or nothing."""
        settings = {"message_max_bytes": 12_000_000, "delivery_timeout_ms": 10_000, "acks": "all"}
        producer = Producer(self.client(user, **settings))
        errors: list[KafkaError | None] = []
        producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error), **options)
        assert producer.flush(20) == 0
        return None if errors[0] is None else errors[0].name()

    def ends(self, topic: str) -> dict[int, tuple[int, int]]:
        """The first and the next offset of each partition."""
        consumer = Consumer(self.client("admin", group_id="levada-review-ends"))
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions

        def end(partition: int) -> tuple[int, int] | None:
            try:
                found: tuple[int, int] = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            except KafkaException as error:
                # A leader knows its end once a follower has told how far it is.
                if error.args[0].code() == KafkaError.OFFSET_NOT_AVAILABLE:
                    return None
                raise
            return found

        ends = {n: until(lambda n=n: end(n), 30, f"the end of {topic}, partition {n}") for n in partitions}  # type: ignore[misc]
        consumer.close()
        return ends

    def read(self, topic: str, user: str = "admin", since: dict[int, tuple[int, int]] | None = None) -> list[Message]:
        """All that is in a topic, or came after the ends, by partition and offset."""
        ends = self.ends(topic)
        begin = {n: low for n, (low, _) in ends.items()} if since is None else {n: end for n, (_, end) in since.items()}
        consumer = Consumer(self.client(user, group_id="levada-load-test", enable_auto_commit=False))
        consumer.assign([TopicPartition(topic, n, offset) for n, offset in begin.items()])
        wanted = sum(high - begin[n] for n, (_, high) in ends.items())
        found: list[Message] = []
        deadline = time.monotonic() + 60
        while len(found) < wanted and time.monotonic() < deadline:
            found += [message for message in consumer.consume(1000, 0.5) if message.error() is None]
        consumer.close()
        assert len(found) == wanted
        return sorted(found, key=lambda message: (message.partition(), message.offset()))

    def load(self, topic: str, stop: threading.Event, load: Load) -> None:
        """Send until told otherwise, some hundred a second, at most some hundred unanswered."""
        producer = Producer(self.client("collector", enable_idempotence=True, delivery_timeout_ms=120_000, linger_ms=5))
        heard = time.monotonic()

        def delivered(error: KafkaError | None, message: Message) -> None:
            nonlocal heard
            if error is not None:
                load.failed.append(error.name())
                return
            load.acknowledged.append(int(message.value() or b""))
            load.longest, heard = max(load.longest, time.monotonic() - heard), time.monotonic()

        while not stop.is_set():
            if len(producer) < 500:
                key = f"key-{load.sent % 7}".encode()
                producer.produce(topic, str(load.sent).encode(), key, on_delivery=delivered)
                load.sent += 1
            producer.poll(0.002)
        producer.flush(120)


def _port(hosts: list[str]) -> int:
    """A port that is free on each of these addresses."""
    while True:
        with socket.socket() as first:
            first.bind((hosts[0], 0))
            port = int(first.getsockname()[1])
            try:
                for host in hosts[1:]:
                    with socket.socket() as other:
                        other.bind((host, port))
            except OSError:
                continue
            return port


def running(folder: Path, values: dict[str, Any], count: int = 3, jvm: Sequence[str] = _QUICK) -> Iterator[Brokers]:
    """A cluster that has started for the first time."""
    brokers = Brokers(folder, values, count, jvm)
    try:
        brokers.start(*brokers.hosts)
        brokers.wait_in_sync(*range(count))
        yield brokers
    finally:
        brokers.close()
