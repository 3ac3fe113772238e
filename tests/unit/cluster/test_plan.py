from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from levada.cluster.plan import MAX_CLUSTERS, MAX_NODES, RANGE, ClusterPlan, hardware_address


def test_clusters_side_by_side_share_nothing() -> None:
    plans = [ClusterPlan(f"c{index}", index, MAX_NODES) for index in range(MAX_CLUSTERS)]
    for one, other in combinations(plans, 2):
        assert not one.block.overlaps(other.block)
        assert one.api_port != other.api_port
        assert one.directory != other.directory
        assert one.cgroup != other.cgroup
    assert all(plan.block.subnet_of(RANGE) for plan in plans)


def test_ranges_inside_a_cluster_are_apart() -> None:
    plan = ClusterPlan("a", 3, MAX_NODES)
    for one, other in combinations((plan.node_network, plan.services, plan.pods), 2):
        assert not one.overlaps(other)
    assert all(part.subnet_of(plan.block) for part in (plan.node_network, plan.services, plan.pods))
    for one, other in combinations(plan.nodes, 2):
        assert not one.pods.overlaps(other.pods)
        assert len({one.address, other.address, plan.control_address}) == 3
        assert len({one.mac, other.mac, hardware_address(plan.control_address)}) == 3
        assert one.zone != other.zone
    assert all(node.pods.subnet_of(plan.pods) and node.address in plan.node_network for node in plan.nodes)


def test_names_of_namespaces_never_meet() -> None:
    """Also where one cluster is called like another one's node."""
    plans = [ClusterPlan(name, node_count=MAX_NODES) for name in ("levada", "levada-1", "levada-control")]
    names = [name for plan in plans for name in (plan.control_namespace, *(node.name for node in plan.nodes))]
    assert len(names) == len(set(names))


def test_names_fit_what_the_kernel_takes() -> None:
    plan = ClusterPlan("a" * 30, 0, MAX_NODES)
    for node in plan.nodes:
        assert len(node.link) < 16
        assert len(str(node.socket)) < 108
    assert plan.directory.is_relative_to(Path("/var/lib/levada"))


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "1a", "a" * 31, "a/b", "..", "a.b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        ClusterPlan(name)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="room for 8"):
        ClusterPlan("a", MAX_CLUSTERS)
    with pytest.raises(ValueError, match="nodes"):
        ClusterPlan("a", 0, 0)
