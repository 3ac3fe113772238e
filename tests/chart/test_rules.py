"""Every rule of policy.py holds for every rendering of cases.py."""

from __future__ import annotations

import pytest

from . import policy
from .cases import DIGEST, cases, feature
from .policy import Rule
from .render import Release

ROW_61 = (
    policy.pods_are_restricted,
    policy.containers_are_bounded,
    policy.long_running_containers_are_probed,
    policy.images_are_pinned,
)


def check(rule: Rule, releases: dict[str, Release]) -> None:
    """Fail with what breaks a rule, said once each with the first rendering in which it does."""
    found: dict[str, str] = {}
    for name, release in releases.items():
        for problem in rule(release):
            found.setdefault(problem, name)
    assert not found, "\n".join(f"{problem}   [{name}]" for problem, name in found.items())


@pytest.mark.parametrize("rule", [rule for rule in policy.RULES if rule not in ROW_61], ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    check(rule, cases())


@pytest.mark.row(61)
@pytest.mark.parametrize("rule", ROW_61, ids=lambda rule: rule.__name__)
def test_every_pod_is_pinned_bounded_probed_and_not_root(rule: Rule) -> None:
    check(rule, cases())


@pytest.mark.row(61)
def test_every_image_takes_a_digest() -> None:
    assert policy.images(feature("digests")) == {f"levada/any@{DIGEST}"}


def test_one_value_mirrors_every_image() -> None:
    mirror = "registry.example.com/mirror/"
    images = policy.images(feature("registry"))
    assert all(image.startswith(mirror + "levada/") for image in images)
    plain = policy.images(feature("a pipeline"))
    assert {image.removeprefix(mirror) for image in images} == plain
    # No image hides where it is not seen as one: in a variable, an argument or a file.
    text = feature("registry").text
    assert [image for image in plain if text.count(image) != text.count(mirror + image)] == []
