"""The pipelines that are shipped as examples are valid in every respect, rules and references too."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from levada.pipeline import parse_pipeline

ROOT = Path(__file__).resolve().parents[3]
FILES = [*sorted(ROOT.glob("values/**/*.yaml")), *sorted(ROOT.glob("examples/*/values.yaml"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_declared_pipeline_is_valid(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    for name, entry in values.get("global", {}).get("pipelines", {}).items():
        parse_pipeline(entry, name)
