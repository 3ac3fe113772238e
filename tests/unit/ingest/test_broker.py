"""How a node of Kafka gets its settings, how its disk is formatted, and when it has caught up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from levada.ingest import broker
from levada.ingest.broker import JOIN, STANDALONE, BrokerError, InSync, Node

VOTERS = ("k-0.k:9404", "k-1.k:9404", "k-2.k:9404")
CLUSTER = "clusterclusterclusterA"
FRESH = """\
kafka_server_raft_metrics_current_epoch 0.0
kafka_server_raft_metrics_current_leader -1.0
kafka_server_raft_metrics_log_end_offset 0.0
kafka_server_raft_metrics_number_of_voters 0.0
"""
JOINED = FRESH.replace("number_of_voters 0.0", "number_of_voters 3.0").replace("epoch 0.0", "epoch 7.0")


def prepare(folder: Path, number: int, answers: dict[str, list[str | None]], voters: tuple[str, ...] = VOTERS) -> str:
    """The way an empty disk is formatted; `answers` are the metrics that each voter gives, one a question."""
    (folder / "shared").write_text(f"listeners=CLIENT://:9092,CONTROLLER://:9093\nlog.dirs={folder}/data\n")

    def ask(voter: str) -> str:
        answer = answers[voter].pop(0)
        if answer is None:
            raise httpx.ConnectError("no")
        return answer

    node = Node(number, f"k-{number}.k", "a", voters)
    broker.prepare(folder / "shared", folder / "own", node, CLUSTER, report=lambda _: None, ask=ask)
    assert {key: left for key, left in answers.items() if left} == {}
    return (folder / "own" / "format").read_text()


def test_a_node_gets_its_number_its_names_and_its_zone(tmp_path: Path) -> None:
    prepare(tmp_path, 2, {})
    lines = (tmp_path / "own" / "server.properties").read_text().splitlines()
    assert lines[-3:] == [
        "node.id=2",
        "advertised.listeners=CLIENT://k-2.k:9092,CONTROLLER://k-2.k:9093",
        "broker.rack=a",
    ]


def test_a_zone_that_is_not_known_is_not_written() -> None:
    assert "broker.rack" not in broker.properties("listeners=A://:1\n", Node(0, "k", "", ()))


def test_a_single_node_begins_its_quorum_at_once(tmp_path: Path) -> None:
    assert prepare(tmp_path, 0, {}, VOTERS[:1]) == STANDALONE


def test_other_nodes_only_join(tmp_path: Path) -> None:
    assert prepare(tmp_path, 1, {}) == JOIN
    assert prepare(tmp_path, 0, {}, ()) == JOIN  # a broker beside controllers


def test_the_first_node_begins_a_quorum_when_every_other_never_saw_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "_LOOK_SECONDS", 0)
    # Not there; there, but its log is not read yet; fresh.
    early = FRESH.replace("kafka_server_raft_metrics_current_epoch 0.0\n", "")
    assert (
        prepare(tmp_path, 0, {VOTERS[1]: [None, FRESH, FRESH, FRESH], VOTERS[2]: [None, None, early, FRESH]})
        == STANDALONE
    )


def test_the_first_node_joins_with_a_new_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows a quorum is enough, whatever the other says."""
    monkeypatch.setattr(broker, "_LOOK_SECONDS", 0)
    assert prepare(tmp_path, 0, {VOTERS[1]: [JOINED]}) == JOIN
    assert prepare(tmp_path, 0, {VOTERS[1]: [None, FRESH], VOTERS[2]: [None, JOINED]}) == JOIN


def formatted(folder: Path, cluster: str = CLUSTER, node: int = 0) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "meta.properties").write_text(f"#\n#today\nnode.id={node}\nversion=1\ncluster.id={cluster}\n")


def test_a_formatted_disk_never_begins_a_quorum(tmp_path: Path) -> None:
    formatted(tmp_path)
    assert prepare(tmp_path, 0, {}) == JOIN


@pytest.mark.parametrize(("cluster", "node", "message"), [("another", 0, "is a migration"), (CLUSTER, 1, "node 1")])
def test_a_disk_of_another_layout_is_refused(tmp_path: Path, cluster: str, node: int, message: str) -> None:
    formatted(tmp_path, cluster, node)
    with pytest.raises(BrokerError, match=message):
        prepare(tmp_path, 0, {})
    assert not (tmp_path / "own").exists()


def partition(leader: int, isrs: list[int], replicas: tuple[int, ...] = (0, 1, 2)) -> SimpleNamespace:
    return SimpleNamespace(leader=leader, isrs=isrs, replicas=replicas)


def test_a_broker_has_caught_up_when_it_is_in_sync_wherever_somebody_leads() -> None:
    state = InSync(0)
    state.look([1, 2], {"t": {0: partition(1, [1, 2])}})
    assert not state.caught_up  # it is not there at all
    state.look([0, 1, 2], {"t": {0: partition(1, [1, 2]), 1: partition(1, [0, 1, 2])}})
    assert (state.caught_up, state.behind) == (False, ["t/0"])
    # Somebody else's partition, and one whose last copy is away: neither is for this broker to mend.
    topics = {"t": {0: partition(1, [1], (1, 2)), 1: partition(-1, [2]), 2: partition(0, [0])}}
    state.look([0, 1], topics)
    assert (state.caught_up, state.behind) == (True, [])


def test_falling_behind_is_not_a_reason_to_be_taken_out_but_going_away_is() -> None:
    state = InSync(0)
    state.look([0, 1], {"t": {0: partition(1, [0, 1])}})
    state.look([0, 1], {"t": {0: partition(1, [1])}})
    assert (state.caught_up, state.behind) == (True, ["t/0"])
    state.look([1], {"t": {0: partition(1, [1])}})
    assert not state.caught_up
    state.look([0, 1], {"t": {0: partition(1, [1])}})
    assert not state.caught_up
