"""Values are merged as Helm does, rows are typed by the declaration, the screen fits."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from levada.cluster import Cluster, ClusterError
from levada.line.demo import read_rows
from levada.line.install import check, merge
from levada.line.status import Component, PipelineState, Status, quantity, render
from levada.line.target import LineError, Target
from levada.pipeline import PipelineError, parse_pipeline

PIPELINE = parse_pipeline(
    {"fields": {"a": {"type": "double"}, "n": {"type": "long"}, "b": {"type": "boolean"}, "s": {"type": "string"}}}, "p"
)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_later_files_win_and_maps_are_joined(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", "global: {x: 1, y: {a: 1}}\nlist: [1, 2]")
    second = write(tmp_path, "b.yaml", "global: {y: {b: 2}}\nlist: [3]")
    assert merge([first, second]) == {"global": {"x": 1, "y": {"a": 1, "b": 2}}, "list": [3]}
    with pytest.raises(LineError, match=r"none\.yaml cannot be read"):
        merge([tmp_path / "none.yaml"])
    with pytest.raises(LineError, match="must hold a mapping"):
        merge([write(tmp_path, "c.yaml", "[1]")])


def test_check_names_every_problem(tmp_path: Path) -> None:
    good = write(tmp_path, "good.yaml", "global: {pipelines: {p: {fields: {a: {type: double}}}}}")
    assert list(check([good])) == ["p"]
    bad = write(
        tmp_path, "bad.yaml",
        "global: {pipelines: {p: {fields: {a: {rule: 'aa > 1'}}}, q: {fields: {a: {type: long}}, model: {label: l}}}}",
    )  # fmt: skip
    with pytest.raises(PipelineError, match=r"(?s)pipeline p: .*did you mean `a`.*pipeline q: model\.label names"):
        check([good, bad])
    with pytest.raises(LineError, match=r"no pipeline under global\.pipelines"):
        check([write(tmp_path, "empty.yaml", "")])


def test_rows_are_typed(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", "a,n,b,s\n1,2,true,x\n0.5,,False,\n")
    assert read_rows(path, PIPELINE) == [{"a": 1.0, "n": 2, "b": True, "s": "x"}, {"a": 0.5, "b": False}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,zz\n1,2\n", "column 'zz' is not a field"),
        ("a,n\n1,2.5\n", "line 2: n is '2.5', not a long"),
        ("b\nyes\n", "line 2: b is 'yes', not a boolean"),
        ("a\n", "holds no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LineError, match=message):
        read_rows(write(tmp_path, "rows.csv", text), PIPELINE)


def test_quantities() -> None:
    assert [quantity(text) for text in ("1Ki", "1536Mi", "2G", "5")] == [1024, 1536 * 2**20, 2e9, 5]


def test_status_fits_eighty_columns() -> None:
    status = Status(
        [
            Component("ingest", "kafka", 1, 1, 0, "0123456789abcdef", 512.4),
            Component("stream", "sink-a-pipeline-with-a-rather-long-name", 0, 1, 12, "0.1.0", None),
        ],
        [PipelineState("a-pipeline-with-a-rather-long-name", 1234567, 0, 3, "12", "accuracy 0.967")],
        300,
    )
    screen = render(status)
    assert max(map(len, screen.splitlines())) <= 80
    assert "not ready" in screen
    assert "812 MiB measured" in screen
    assert not status.ready


def test_a_service_that_is_not_there_is_an_error_of_the_line() -> None:
    class Without:
        def forward(self, namespace: str, service: str, port: int) -> int:
            raise ClusterError(f"services {service} not found")

    target = Target(Path("kubectl"), Path("helm"), "own", cluster=cast(Cluster, Without()))
    with pytest.raises(LineError, match="levada-mlflow not found"):
        target.url("levada-mlflow", 5000)
