"""What a pod of the bundled Kafka needs beside Kafka itself: its own settings, the way its disk is formatted, and word
of whether its broker has caught up.

The quorum is dynamic. An empty disk gets a new directory id and joins the quorum that is there, where it takes the
place of the voter that had this node's number. Only the first node may begin a quorum, and only after every other one
has said that it never saw any: an empty disk alone does not tell a first start from a lost volume.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from levada.config import KafkaSettings, Settings
from levada.errors import UserError
from levada.process import run

STANDALONE: Final = "--standalone"
JOIN: Final = "--no-initial-controllers"

_MIGRATION: Final = "docs/how-to/kafka.md, “From one layout to another”"
_ASK_SECONDS: Final = 5.0
_REMIND_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 2.0
_METRIC = re.compile(
    r"^kafka_server_raft_metrics_(current_epoch|number_of_voters|log_end_offset)\s+(\S+)$", re.MULTILINE
)

Report = Callable[[str], None]
"""Takes one line."""
Ask = Callable[[str], str]
"""The metrics page of a node's address, ``host:port``; raises :class:`httpx.HTTPError` if there is none."""


class BrokerError(UserError):
    """A disk that does not belong to what the values describe; nothing was changed."""


@dataclass(frozen=True)
class Node:
    """One pod of Kafka."""

    id: int
    host: str
    """The name by which the others reach it."""
    rack: str
    """Its zone; empty: not known."""
    voters: tuple[str, ...]
    """Where the metrics of each voter are, first of the one that may begin the quorum; none for a pure broker."""

    @property
    def others(self) -> tuple[str, ...]:
        """The addresses of the voters that are not this node."""
        return tuple(voter for voter in self.voters if voter.rpartition(":")[0] != self.host)

    @property
    def first(self) -> bool:
        """Whether this is the node that may begin a quorum."""
        return bool(self.voters) and self.voters[0] not in self.others


def properties(shared: str, node: Node) -> str:
    """The settings that all nodes share, with those that are this node's own."""
    own = {"node.id": str(node.id), "advertised.listeners": _advertised(_value(shared, "listeners"), node.host)}
    if node.rack:
        own["broker.rack"] = node.rack
    return "\n".join([shared.rstrip("\n"), *(f"{name}={value}" for name, value in own.items()), ""])


def _value(text: str, name: str) -> str:
    found = re.findall(rf"^{re.escape(name)}=(.*)$", text, re.MULTILINE)
    if not found:
        raise BrokerError(f"the settings of Kafka have no {name}")
    return str(found[-1]).strip()


def _advertised(listeners: str, host: str) -> str:
    return ",".join(re.sub(r"//[^:]*:", f"//{host}:", listener.strip()) for listener in listeners.split(","))


def prepare(shared: Path, into: Path, node: Node, cluster: str, *, report: Report, ask: Ask | None = None) -> None:
    """Write ``server.properties`` and ``format``, the option with which an empty disk is formatted, into a folder.

    Waits without end while it cannot be known whether there is a quorum.

    Raises:
        BrokerError: the disk was formatted for another cluster or node.
    """
    text = properties(shared.read_text(), node)
    disk = Path(_metadata_folder(text))
    known = _meta(disk / "meta.properties")
    if known is None:
        way = _way(node, ask or _metrics, report)
    else:
        _refuse_another(known, node, cluster)
        way = JOIN  # It is formatted: this is for further folders in log.dirs, which can never begin a quorum.
    into.mkdir(parents=True, exist_ok=True)
    (into / "server.properties").write_text(text)
    (into / "format").write_text(way)


def _metadata_folder(text: str) -> str:
    named = re.findall(r"^metadata\.log\.dir=(.*)$", text, re.MULTILINE)
    return str(named[-1]).strip() if named else _value(text, "log.dirs").split(",")[0].strip()


def _meta(file: Path) -> dict[str, str] | None:
    if not file.exists():
        return None
    lines = (line.partition("=") for line in file.read_text().splitlines() if not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in lines}


def _refuse_another(known: Mapping[str, str], node: Node, cluster: str) -> None:
    if known.get("cluster.id") != cluster:
        raise BrokerError(
            f"this disk belongs to Kafka cluster {known.get('cluster.id')}, the values describe cluster {cluster}. "
            f"Another number of brokers, or controllers of their own, is a migration and not an upgrade: {_MIGRATION}. "
            "Nothing was changed; with the values of before, all is as it was"
        )
    if known.get("node.id") != str(node.id):
        raise BrokerError(f"this disk belongs to node {known.get('node.id')} of the cluster, this is node {node.id}")


def _way(node: Node, ask: Ask, report: Report) -> str:
    """How an empty disk is formatted; returns once that is certain."""
    if not node.first:
        return JOIN
    said, reminded = "", 0.0
    while True:
        silent = []
        for voter in node.others:
            match _ever_joined(ask, voter):
                case True:
                    report(f"{voter} knows a quorum: this empty disk joins it")
                    return JOIN
                case None:
                    silent.append(voter)
        if not silent:
            report("no node ever saw a quorum: this one begins it")
            return STANDALONE
        story = f"this disk is empty; to tell a first start from a lost volume, waiting for word of {', '.join(silent)}"
        if story != said or time.monotonic() - reminded > _REMIND_SECONDS:
            report(story)
            said, reminded = story, time.monotonic()
        time.sleep(_LOOK_SECONDS)


def _ever_joined(ask: Ask, voter: str) -> bool | None:
    """Whether a node was ever part of a quorum; None: it does not say."""
    try:
        found = {name: float(value) for name, value in _METRIC.findall(ask(voter))}
    except (httpx.HTTPError, ValueError):
        return None
    # The epoch is there once a node has read its own log; before that the other two may still be zero.
    return any(found.values()) if len(found) == 3 else None


def _metrics(voter: str) -> str:
    return httpx.get(f"http://{voter}/metrics", timeout=_ASK_SECONDS).raise_for_status().text


class _Partition(Protocol):
    leader: int
    replicas: Sequence[int]
    isrs: Sequence[int]


class InSync:
    """Whether a broker has caught up since it came back.

    Once it has, it stays so while it serves: that a broker falls behind under load must not take it out of the Service.
    A partition without a leader does not count, because nothing this broker does can bring it back: after a stop of all
    brokers none waits for one that stays away.
    """

    def __init__(self, node: int) -> None:
        self.node = node
        self.caught_up = False
        self.behind: list[str] = []
        """The partitions that are still being copied, ``topic/partition``."""

    def look(self, brokers: Iterable[int], topics: Mapping[str, Mapping[int, _Partition]]) -> None:
        """Take in what the cluster says of its brokers and partitions."""
        if self.node not in brokers:
            self.caught_up, self.behind = False, []
            return
        self.behind = [
            f"{topic}/{number}"
            for topic, partitions in topics.items()
            for number, partition in partitions.items()
            if self.node in partition.replicas
            and self.node not in partition.isrs
            and partition.leader not in (-1, self.node)
        ]
        self.caught_up = self.caught_up or not self.behind


def look(state: InSync, admin: Any, address: str) -> None:
    """Take in what there is to know now; ``address`` is the broker's own, ``host:port``.

    Its port opens when it has registered anew. Before that the cluster may still hold it for what it was.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _LOOK_SECONDS).close()
    except OSError:
        state.look((), {})
        return
    try:
        listing = admin.list_topics(timeout=_ASK_SECONDS)
    except KafkaException:
        return  # Nobody answers just now: that is no news of this broker.
    state.look(listing.brokers, {name: topic.partitions for name, topic in listing.topics.items()})


def watch(settings: Settings, kafka: KafkaSettings, node: int) -> None:
    """Answer ``/readyz`` with whether the broker ``node`` has caught up, until SIGTERM."""
    state = InSync(node)

    def main(stop: threading.Event) -> None:
        log = structlog.get_logger()
        admin = AdminClient({**kafka.client(), "logger": logging.getLogger("librdkafka"), "log_level": 0})
        while not stop.is_set():
            before = state.caught_up, len(state.behind)
            look(state, admin, kafka.bootstrap)
            if (state.caught_up, len(state.behind)) != before:
                log.info("in sync" if state.caught_up else "catching up", partitions_behind=len(state.behind))
            stop.wait(_LOOK_SECONDS)

    run(main, settings, ready=lambda: state.caught_up)
