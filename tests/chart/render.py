"""Renders the chart with a real Helm, once for each set of arguments."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from levada.cluster.binaries import Binaries
from levada.cluster.progress import Console

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "levada"
VALUES = ROOT / "values"

Manifest = dict[str, Any]


class RenderError(AssertionError):
    """Helm refused the values, or warned about something; the message is what it wrote."""


@dataclass(frozen=True)
class Release:
    """What one rendering gave."""

    text: str

    @cached_property
    def objects(self) -> list[Manifest]:
        """Every object, in Helm's order."""
        return [document for document in yaml.load_all(self.text, _Loader) if document is not None]

    def kind(self, *kinds: str) -> list[Manifest]:
        """The objects of some kinds."""
        return [manifest for manifest in self.objects if manifest["kind"] in kinds]

    def find(self, kind: str, name: str) -> Manifest:
        """The one object of this kind and name."""
        (found,) = (each for each in self.kind(kind) if each["metadata"]["name"] == name)
        return found


def render(
    *files: str,
    values: Mapping[str, Any] | None = None,
    helm: str = "helm",
    kubernetes: str = "1.37.2",
    release: str = "levada",
) -> Release:
    """Render the chart as `helm template` does; what was rendered before is not rendered again.

    Args:
        files: values files in order, by their names under values/ without `.yaml`.
        values: values on top of the files.
        helm: `helm` or `helm3`.
        kubernetes: the version that the chart is told it meets.
        release: name of the release.

    Raises:
        RenderError: Helm failed, or wrote anything to stderr.
    """
    on_top = json.dumps(values, sort_keys=True) if values else None
    return _render(files, on_top, helm, kubernetes, release)


@cache
def _render(files: tuple[str, ...], values: str | None, helm: str, kubernetes: str, release: str) -> Release:
    return Release(_run([helm, "template", release, str(CHART), "--kube-version", kubernetes], files, values))


def uncached(*files: str) -> str:
    """What Helm writes when it is asked again."""
    return _run(["helm", "template", "levada", str(CHART), "--kube-version", "1.37.2"], files, None)


@dataclass(frozen=True)
class Record:
    """What Helm would store in the cluster, and show to the user."""

    notes: str
    stored_bytes: int


@cache
def install(*files: str) -> Record:
    """Install without a cluster: the release's notes, and the size of its record."""
    output = _run(["helm", "install", "levada", str(CHART), "--dry-run=client", "-o", "json"], files, None)
    record = base64.b64encode(gzip.compress(output.encode()))
    return Record(json.loads(output)["info"]["notes"], len(record))


def _run(command: list[str], files: tuple[str, ...], values: str | None) -> str:
    command = [binary(command[0]), *command[1:], "--namespace", "levada"]
    for file in files:
        command += ["--values", str(VALUES / f"{file}.yaml")]
    with tempfile.TemporaryDirectory() as home:
        if values is not None:
            on_top = Path(home) / "values.json"
            on_top.write_text(values)
            command += ["--values", str(on_top)]
        # Neither a cluster nor plugins nor settings of the user have a say.
        env = {"HOME": home, "PATH": os.environ["PATH"], "KUBECONFIG": f"{home}/none"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0 or done.stderr:
        raise RenderError(done.stderr)
    return done.stdout


@cache
def binary(name: str) -> str:
    """Path of `helm` or `helm3`: the one that the environment names, else our own, built if need be."""
    return os.environ.get(f"LEVADA_{name.upper()}") or str(Binaries(Console()).program(name, "helm"))


class _Loader(yaml.CSafeLoader):
    """YAML in which a key given twice is an error, as it is for the API server's strict reading."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise RenderError(f"keys given twice: {sorted(twice)}{node.start_mark}")
        return super().construct_mapping(node, deep)
