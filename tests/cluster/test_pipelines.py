"""A pipeline that exists only in a values file goes through the same line."""

from __future__ import annotations

from levada.line import install

from .conftest import Line

WINE = install.ROOT / "examples" / "wine"


def test_second_pipeline_from_values_alone(line: Line) -> None:
    shared = {name: pod["metadata"]["uid"] for name, pod in line.pods().items()}
    line.install(WINE / "values.yaml")
    report = line.demo("wine", WINE / "wine.csv")
    assert report.version == report.outcome["champion"]
    assert report.correct >= 0.9 * report.rows
    # A new pipeline restarts nothing that was there: shared processes reload it, the others are its own.
    pods = {name: pod["metadata"]["uid"] for name, pod in line.pods().items()}
    assert shared.items() <= pods.items()
    assert line.demo("iris").version
