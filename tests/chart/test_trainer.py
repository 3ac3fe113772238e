"""The pods in which models are trained and judged."""

from __future__ import annotations

from typing import Any

from .policy import embedded
from .render import render


def templates() -> dict[str, Any]:
    """The two pods, by the command they are for."""
    pods = [pod for _, pod in embedded(render()) if pod["kind"] == "Pod"]
    assert len(pods) == 2
    signs = ["LEVADA_GATE_KEY_FILE" in variables(pod) for pod in pods]
    return {"promote": pods[signs.index(True)], "train": pods[signs.index(False)]}


def variables(pod: Any) -> dict[str, str | None]:
    """Environment of a pod's one container."""
    [container] = pod["spec"]["containers"]
    return {each["name"]: each.get("value") for each in container["env"]}


def test_both_can_tell_which_image_they_run_in() -> None:
    for pod in templates().values():
        assert variables(pod)["LEVADA_IMAGE"] == pod["spec"]["containers"][0]["image"]


def test_what_trains_has_no_key_to_sign_with() -> None:
    def secrets(pod: Any) -> set[str]:
        sources = [each for volume in pod["spec"]["volumes"] for each in volume.get("projected", {}).get("sources", [])]
        return {each["secret"]["name"] for each in sources}

    pods = templates()
    assert secrets(pods["promote"]) - secrets(pods["train"]) == {"levada-gate"}
    assert secrets(pods["train"]) < secrets(pods["promote"])
