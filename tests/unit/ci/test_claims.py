"""docs/claims.md says of each row what the last run showed, and no more."""

from __future__ import annotations

import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

pytest_plugins = ["pytester"]

SCRIPT = Path(__file__).resolve().parents[3] / "ci" / "claims"
SECTIONS = {"Ingest": {"1": "orders are kept"}, "Queue": {"8": "topics are there", "9": "no others are"}}


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    loader = SourceFileLoader("claims", str(SCRIPT))
    spec = spec_from_loader("claims", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def report(path: Path, *cases: tuple[str, str]) -> Path:
    """A JUnit report as pytest writes it: the row property and the outcome of each test."""
    mark = '<properties><property name="row" value="{}"/></properties>'
    tests = "".join(f"<testcase>{mark.format(row + ' ')}{outcome}</testcase>" for row, outcome in cases)
    path.write_text(f"<testsuites><testsuite>{tests}</testsuite></testsuites>")
    return path


def test_a_row_is_claimed_with_its_tests_and_their_level(claims: ModuleType, tmp_path: Path) -> None:
    reports = [
        report(tmp_path / "chart.xml", ("8 chart tests/chart/test_a.py::test_topics", "")),
        report(tmp_path / "cluster.xml", ("8 cluster tests/cluster/test_b.py::test_topics", "")),
        report(tmp_path / "unit.xml", ("1 process tests/unit/test_c.py::test_collect", "")),
    ]
    page = claims.page(SECTIONS, reports)
    assert (
        "| 8 | topics are there | rendered: `tests/chart/test_a.py::test_topics`<br>"
        "run on a cluster: `tests/cluster/test_b.py::test_topics` |" in page
    )
    assert "| 1 | orders are kept | run as a process: `tests/unit/test_c.py::test_collect` |" in page
    assert "| 9 | no others are | *not claimed* |" in page


@pytest.mark.parametrize("outcome", ["<failure/>", "<error/>", "<skipped/>"])
def test_one_test_that_did_not_pass_takes_the_claim_away(claims: ModuleType, tmp_path: Path, outcome: str) -> None:
    cases = [("8 chart tests/chart/test_a.py::test_one", ""), ("8 chart tests/chart/test_a.py::test_two", outcome)]
    assert "| 8 | topics are there | *not claimed* |" in claims.page(SECTIONS, [report(tmp_path / "chart.xml", *cases)])


def test_a_mark_of_no_known_row_is_an_error(claims: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="70"):
        claims.page(SECTIONS, [report(tmp_path / "unit.xml", ("70 unit tests/unit/test_c.py::test_x", ""))])


def test_marks_reach_the_report(pytester: pytest.Pytester, claims: ModuleType) -> None:
    """The hook in tests/conftest.py and the script agree on what stands in a report."""
    pytester.makeconftest((SCRIPT.parents[1] / "tests" / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = row(number): a row")
    folder = pytester.mkdir("tests")
    (folder / "unit").mkdir()
    (folder / "unit" / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.row(8)\n"
        "@pytest.mark.row(9, process=True, part='the refusal')\n"
        "@pytest.mark.parametrize('x', [1, 2])\n"
        "def test_it(x): pass\n"
    )
    pytester.runpytest_inprocess("--junit-xml=report.xml", "-p", "no:cacheprovider")
    page = claims.page(SECTIONS, [pytester.path / "report.xml"])
    assert "| 8 | topics are there | unit: `tests/unit/test_it.py::test_it` |" in page
    assert "| 9 | no others are | run as a process, only the refusal: `tests/unit/test_it.py::test_it` |" in page


def test_every_row_is_listed_once(claims: ModuleType) -> None:
    sections = tomllib.loads((SCRIPT.parents[1] / "docs" / "claims.toml").read_text())
    assert [int(row) for rows in sections.values() for row in rows] == list(range(1, 70))
