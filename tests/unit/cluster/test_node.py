from __future__ import annotations

import pytest

from levada.cluster.node import reserved

MACHINE = {"cores": 2, "memory": 25_276_502_016, "disk": 270_553_174_016}


def test_one_node_keeps_nothing_back() -> None:
    assert reserved(1, **MACHINE) == {"cpu": "0m", "memory": "0", "ephemeral-storage": "0"}


@pytest.mark.parametrize("nodes", [2, 3, 9])
def test_what_nodes_leave_to_pods_is_the_machine_and_not_more(nodes: int) -> None:
    kept = reserved(nodes, **MACHINE)
    for resource, unit, whole in (
        ("cpu", "m", MACHINE["cores"] * 1000),
        ("memory", "", MACHINE["memory"]),
        ("ephemeral-storage", "", MACHINE["disk"]),
    ):
        share = whole - int(kept[resource].removesuffix(unit))
        assert whole - nodes < nodes * share <= whole
