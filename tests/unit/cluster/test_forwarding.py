"""Which port leads to a Service, when many ask at once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from levada.cluster.forwarding import Forwarding
from levada.cluster.plan import ClusterPlan


class SlowForwarding(Forwarding):
    """Its process opens a port and says so a moment later, as the real one does on a busy machine."""

    def __init__(self, plan: ClusterPlan) -> None:
        super().__init__(plan)
        self.opened: dict[int, socket.socket] = {}

    def pids(self) -> list[int]:
        return [1]

    def _serve(self, wanted: list[int]) -> None:
        for port in wanted:
            if port not in self.opened:
                self.opened[port] = socket.create_server(("127.0.0.1", port))
                time.sleep(0.2)
                self._listening.write_text(json.dumps(list(self.opened)))


@pytest.fixture
def forwarding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowForwarding]:
    monkeypatch.setattr("levada.cluster.plan.STATE", tmp_path)
    made = SlowForwarding(ClusterPlan("many"))
    (tmp_path / "many" / "forwarder").mkdir(parents=True)
    yield made
    for listener in made.opened.values():
        listener.close()


def test_all_are_told_the_same_port(forwarding: SlowForwarding) -> None:
    with ThreadPoolExecutor(8) as pool:
        ports = set(pool.map(lambda _: forwarding.forward("default", "web", 80, None), range(8)))
    assert ports == set(forwarding.opened)
    assert len(ports) == 1
