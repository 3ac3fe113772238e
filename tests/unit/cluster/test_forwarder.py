"""Which pods a forwarded port leads to."""

from __future__ import annotations

from typing import Any

from levada.cluster.forwarder import endpoints

SERVICE = {"spec": {"ports": [{"name": "web", "port": 80}, {"name": "metrics", "port": 9090}]}}


def part(*pods: tuple[str, str], ports: dict[str, int] | None = None) -> dict[str, Any]:
    """An EndpointSlice of pods: address and what they are."""
    conditions = {
        "ready": {"ready": True, "serving": True, "terminating": False},
        "ending": {"ready": False, "serving": True, "terminating": True},
        "gone": {"ready": False, "serving": False, "terminating": True},
    }
    named = {"web": 8080, "metrics": 9000} if ports is None else ports
    return {
        "ports": [{"name": name, "port": port} for name, port in named.items()],
        "endpoints": [{"addresses": [address], "conditions": conditions[state]} for address, state in pods],
    }


def test_ready_pods_of_all_slices_by_the_port_they_listen_on() -> None:
    slices = [part(("10.0.0.1", "ready"), ("10.0.0.2", "gone")), part(("10.0.0.3", "ready"), ports={"web": 8081})]
    assert endpoints(SERVICE, slices, 80) == [("10.0.0.1", 8080), ("10.0.0.3", 8081)]
    assert endpoints(SERVICE, slices, 9090) == [("10.0.0.1", 9000)]


def test_a_pod_that_ends_is_taken_only_if_none_is_ready() -> None:
    assert endpoints(SERVICE, [part(("10.0.0.1", "ending"), ("10.0.0.2", "ready"))], 80) == [("10.0.0.2", 8080)]
    assert endpoints(SERVICE, [part(("10.0.0.1", "ending"), ("10.0.0.2", "gone"))], 80) == [("10.0.0.1", 8080)]


def test_a_port_without_a_name_is_found() -> None:
    unnamed = {"spec": {"ports": [{"port": 80}]}}
    slices = [{"ports": [{"name": "", "port": 8080}], "endpoints": part(("10.0.0.1", "ready"))["endpoints"]}]
    assert endpoints(unnamed, slices, 80) == [("10.0.0.1", 8080)]


def test_a_service_without_pods_leads_nowhere() -> None:
    assert endpoints(SERVICE, [{"ports": None, "endpoints": None}], 80) == []
