from __future__ import annotations

import json

import pytest

from levada.cluster.links import BETWEEN, FROM_CONTROL, TO_CONTROL, Direction, between, parse, ports, script, tell
from levada.cluster.plan import ClusterPlan

NAMES = ports(ClusterPlan("a", node_count=3))
OTHERS = ("node1", "node3", "switch")


def test_both_directions_are_the_two_single_ones() -> None:
    inbound, outbound = (between("node2", OTHERS, way) for way in (Direction.INBOUND, Direction.OUTBOUND))
    assert ("node1", "node2") in inbound
    assert ("node2", "switch") in outbound
    assert not inbound & outbound
    assert between("node2", OTHERS, Direction.BOTH) == inbound | outbound


@pytest.mark.parametrize(
    ("direction", "told"),
    [
        (Direction.BOTH, "a-2 is cut off"),
        (Direction.INBOUND, "a-2 receives nothing"),
        (Direction.OUTBOUND, "nothing that a-2 sends arrives"),
    ],
)
def test_a_whole_node_is_told_in_one_sentence(direction: Direction, told: str) -> None:
    assert tell(between("node2", OTHERS, direction), NAMES) == [told]


def test_single_links_are_told_by_their_ends() -> None:
    one_way = between("node1", ["switch"], Direction.INBOUND)
    both_ways = between("node3", ["node1"], Direction.BOTH)
    assert tell(one_way | both_ways, NAMES) == [
        "a-1 and a-3 do not reach each other",
        "nothing from the control plane reaches a-1",
    ]


def test_what_is_left_beside_a_node_that_is_cut_off_is_told_too() -> None:
    broken = between("node2", OTHERS, Direction.BOTH) | {("node1", "node3")}
    assert tell(broken, NAMES) == ["a-2 is cut off", "nothing from a-1 reaches a-3"]


def test_nothing_broken_is_nothing_told() -> None:
    assert tell(set(), NAMES) == []


def test_every_link_has_its_set() -> None:
    assert script({("node1", "node2"), ("node1", "switch"), ("switch", "node2")}, "add").splitlines() == [
        f'add element bridge levada-faults {BETWEEN} {{ "node1" . "node2" }}',
        f'add element bridge levada-faults {TO_CONTROL} {{ "node1" }}',
        f'add element bridge levada-faults {FROM_CONTROL} {{ "node2" }}',
    ]


def test_links_are_read_from_what_nft_lists() -> None:
    listing = [
        {"metainfo": {"version": "1.0.6"}},
        {"set": {"name": BETWEEN, "elem": [{"concat": ["node1", "node2"]}, {"concat": ["node3", "node2"]}]}},
        {"set": {"name": TO_CONTROL, "elem": ["node2"]}},
        {"set": {"name": FROM_CONTROL}},
        {"chain": {"name": "forward"}},
    ]
    broken = {("node1", "node2"), ("node3", "node2"), ("node2", "switch")}
    assert parse(json.dumps({"nftables": listing})) == broken
