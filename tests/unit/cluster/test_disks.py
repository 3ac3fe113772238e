from __future__ import annotations

from pathlib import Path

import pytest

from levada.cluster import ClusterError, disks, machines
from levada.cluster.plan import ClusterPlan

NODE = ClusterPlan("a", node_count=3).nodes[1]
VOLUMES = NODE.directory / "volumes"
MOUNTS = f"""\
22 21 254:0 / / rw,relatime shared:1 master:1 - ext4 /dev/vda rw
80 22 254:0 {NODE.directory} {NODE.directory} rw,relatime shared:9 - ext4 /dev/vda rw
91 80 0:57 / {NODE.directory}/kubelet/pods/7/volumes/secret rw,relatime shared:11 - tmpfs tmpfs rw,size=4k
95 80 0:61 / {VOLUMES}/pvc-1_levada_data-levada-kafka-1 rw,relatime shared:12 - tmpfs small rw,size=90000k
96 22 0:61 / {VOLUMES}/pvc-1_levada_data-levada-kafka-1 rw,relatime shared:12 - tmpfs small rw,size=90000k
"""


def test_small_disks_are_read_from_the_mounts_of_the_node() -> None:
    assert disks.parse(MOUNTS, VOLUMES) == [VOLUMES / "pvc-1_levada_data-levada-kafka-1"]
    assert disks.parse(MOUNTS, VOLUMES.with_name("other")) == []


def test_the_disk_of_the_machine_is_never_filled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machines, "init", lambda _: None)
    with pytest.raises(ClusterError, match="is never filled"):
        disks.fill(NODE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_node_that_is_off_has_no_disk_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "init", lambda _: None)
    for move in (lambda: disks.shrink(NODE, VOLUMES / "pvc-1", 1), lambda: disks.widen(NODE, VOLUMES / "pvc-1")):
        with pytest.raises(ClusterError, match="node a-2 is off"):
            move()
