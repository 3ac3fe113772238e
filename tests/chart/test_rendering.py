"""The chart renders the same for everybody, every time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import levada
from levada.values.chart import CHART, defaults

from . import openapi
from .cases import cases
from .render import Release, RenderError, render, uncached

TEMPLATES = [path for path in sorted(CHART.rglob("*")) if "templates" in path.parts and path.is_file()]

# Blocks that templates hand on as they are.
PASSED_ON = {"resources", "extraArgs"}


def documents(release: Release) -> list[str]:
    """The documents of a rendering. Helm 4 leaves the last line end of each, Helm 3 takes it away."""
    return [document.rstrip("\n") for document in release.text.split("\n---\n")]


def test_both_helms_render_the_same_bytes() -> None:
    three = cases("helm3")
    assert [name for name, release in cases().items() if documents(release) != documents(three[name])] == []


def test_rendering_again_gives_the_same_bytes() -> None:
    assert uncached("local", "profiles/nano") == render("local", "profiles/nano").text


def test_supported_kubernetes_versions_get_the_same_objects() -> None:
    assert len({render("local", kubernetes=version).text for version in openapi.VERSIONS}) == 1
    with pytest.raises(RenderError, match="kubeVersion"):
        render("local", kubernetes="1.33.0")


def test_templates_depend_neither_on_chance_nor_on_the_cluster() -> None:
    unsteady = re.compile(
        r"\b(lookup|rand[A-Z]\w+|gen(?:CA|\w*Cert\w*|PrivateKey)|uuidv4|now|htpasswd|Capabilities|Is(?:Install|Upgrade))\b"
    )
    code = {path: " ".join(re.findall(r"\{\{(?!-? */\*).*?\}\}", path.read_text(), re.DOTALL)) for path in TEMPLATES}
    assert {path.name: unsteady.findall(text) for path, text in code.items() if unsteady.search(text)} == {}


def test_every_template_helper_is_its_charts_own_and_used() -> None:
    defined: dict[str, Path] = {}
    text = "".join(path.read_text() for path in TEMPLATES)
    families = re.findall(r'include \(printf "([\w.]+\.)%s"', text)
    for path in TEMPLATES:
        chart = path.relative_to(CHART).parts
        owner = chart[1] if chart[0] == "charts" else CHART.name
        for name in re.findall(r'define "([^"]+)"', path.read_text()):
            assert name.startswith(f"{owner}."), f"{path}: {name}"
            assert name not in defined, f"{name} is in {path} and in {defined[name]}"
            used = re.search(rf'(?:include|template) "{re.escape(name)}"', text)
            assert used or name.startswith(tuple(families)), f"nothing uses {name}"
            defined[name] = path
    assert defined


def test_templates_and_defaults_speak_of_the_same_values() -> None:
    """Each path that a template reads exists, and each name in the defaults is read somewhere."""
    values = defaults()
    text = "".join(path.read_text() for path in TEMPLATES)
    for path in TEMPLATES:
        chart = path.relative_to(CHART).parts
        own = values.get(chart[1], values) if chart[0] == "charts" else values
        for found in re.findall(r"\.Values\.([\w.]+)", path.read_text()):
            block: Any = {**own, "global": values["global"]} if chart[:2] != ("charts", "lib") else values
            for step in found.split("."):
                assert step in block, f"{path.name} reads .Values.{found}"
                block = block[step]
    names = {name for name in _names(values) if not re.search(rf"[.\"]{re.escape(name)}\b", text)}
    assert names == set()


def _names(values: Any) -> set[str]:
    if not isinstance(values, dict):
        return set()
    return set(values).union(*(_names(value) for name, value in values.items() if name not in PASSED_ON))


def test_all_charts_have_the_projects_version() -> None:
    for path in [CHART / "Chart.yaml", *CHART.glob("charts/*/Chart.yaml")]:
        chart = yaml.safe_load(path.read_text())
        assert {chart["version"], str(chart["appVersion"])} == {levada.__version__}, path
