"""From a bare machine, or a given cluster, to a prediction: every phase in order, each timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from levada import cluster
from levada.cluster import images
from levada.cluster.progress import Progress
from levada.line import install
from levada.line.demo import Demo, Report, read_rows
from levada.line.target import LineError, Target, find
from levada.pipeline import Pipeline

EXAMPLES = install.ROOT / "examples"


@dataclass
class Phases:
    """Progress that also keeps the seconds of each phase."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One phase."""
        started = time.monotonic()
        with self.progress.phase(name):
            yield
        self.seconds[name] = time.monotonic() - started

    def summary(self) -> str:
        """One line a phase and their sum."""
        rows = [*self.seconds.items(), ("together", sum(self.seconds.values()))]
        return "\n".join(f"{seconds:7.1f} s  {name}" for name, seconds in rows)


def prepare(name: str, progress: Progress, phases: Phases, namespace: str) -> tuple[Target, list[Path]]:
    """Bring up this machine's own cluster with the images in it; the target and the values that name the images."""
    with phases.phase("cluster"):
        own = cluster.up(name, progress)
    with phases.phase("images"):
        built = images.build(None, progress)
    with phases.phase("import into the nodes"):
        own.import_images(built)
    with phases.phase("kubectl and helm"):  # compiled where they are not there yet
        target = find(cluster=name, context=None, namespace=namespace)
    return target, [install.write_values(own.state / "images.yaml", images.values(built))]


def prepare_context(
    context: str, registry: str | None, progress: Progress, phases: Phases, namespace: str
) -> tuple[Target, list[Path]]:
    """Push the images to ``registry`` for an existing cluster; the target and the values that name the images.

    Raises:
        LineError: no registry is given.
    """
    if not registry:
        raise LineError("CONTEXT is given without REGISTRY: say where the cluster's nodes pull the images from")
    target = find(cluster="", context=context, namespace=namespace)
    with phases.phase("images"):
        built = images.build(None, progress)
    with phases.phase(f"push to {registry}"):
        images.push(built, registry, progress)
    values = {**images.values(built)}
    values.setdefault("global", {}).setdefault("image", {})["registry"] = registry
    return target, [install.write_values(install.ROOT / "build" / "images.yaml", values)]


def put_up(target: Target, values: Sequence[Path], image_values: Sequence[Path], phases: Phases) -> None:
    """Install or upgrade the line and wait until all of it is ready."""
    install.check(values)
    with phases.phase("helm install"):
        install.install(target, [*values, *image_values], phases.progress.detail)


def run_demo(target: Target, pipeline: str, data: Path | None, say: Callable[[str], None]) -> Report:
    """The demo for one declared pipeline with the rows of ``data``, by default those of its example.

    Raises:
        LineError: no data is given and the pipeline is no example.
    """
    declared: Pipeline = target.pipeline(pipeline)
    file = data or EXAMPLES / pipeline / f"{pipeline}.csv"
    if not file.is_file():
        raise LineError(f"{file} is not there: give the rows of pipeline {pipeline} with --data FILE.csv")
    return Demo(target, declared, read_rows(file, declared), say).run()
