"""The pod in which models are trained."""

from __future__ import annotations

from .policy import embedded
from .render import render


def test_a_training_can_tell_which_image_it_ran_in() -> None:
    [container] = next(pod for _, pod in embedded(render()) if pod["kind"] == "Pod")["spec"]["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["LEVADA_IMAGE"] == container["image"]
