"""The gate's report: JSON for programs, whose digest is signed, and one HTML page for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from levada.evidence import RUN_TAG, SNAPSHOT_TAG
from levada.registry import plots
from levada.registry.checks import counts
from levada.registry.data import declared_model

if TYPE_CHECKING:
    from levada.pipeline import Pipeline
    from levada.registry.case import Evidence
    from levada.registry.gate import Verdict
    from levada.registry.promote import Approval

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0; text-align: left }
.promoted { color: #1a7f37 } .kept { color: #57606a } .refused { color: #cf222e } .needs { color: #9a6700 }
.alarm { color: #cf222e; font-weight: 600 } figure { display: inline-block; margin: 0 1rem 1rem 0 }
figcaption { font-size: .85rem; color: #57606a }
"""


def content(
    pipeline: Pipeline,
    version: Any,
    found: Evidence,
    verdict: Verdict,
    files: dict[str, str],
    approval: Approval | None = None,
) -> dict[str, Any]:
    """The report as one JSON object.

    Args:
        pipeline: whose model was judged.
        version: the judged version.
        found: what was looked at.
        verdict: what was decided.
        files: path → hex SHA-256 of the data stored beside the version if it is promoted.
        approval: who approved it, if anybody did.
    """
    gate = declared_model(pipeline).gate
    champion = found.case.champion
    return {
        "pipeline": pipeline.name,
        "version": str(version.version),
        "run": version.tags[RUN_TAG],
        "snapshot": version.tags[SNAPSHOT_TAG],
        "champion": champion.version if champion is not None else None,
        **asdict(verdict),
        "gate": gate.model_dump(by_alias=True) | {"floor": gate.worst},
        "frozen": {"rows": len(found.frozen.rows), "sha256": found.frozen.sha256},
        "rows": {
            "training": len(found.training),
            "held out": len(found.held_out),
            "recent": len(found.case.recent) if found.case.recent is not None else 0,
            **{f"window {name}": len(rows) for name, rows in found.windows.items()},
        },
        "checks": [asdict(one) for one in found.case.checks],
        "shadow": asdict(found.shadow) if found.shadow is not None else None,
        "latency": found.latency,
        "approval": asdict(approval) if approval is not None else None,
        "files": files,
    }


def to_json(report: dict[str, Any]) -> bytes:
    """The report's bytes, as they are stored and hashed."""
    return json.dumps(report, indent=2, allow_nan=False).encode()


def page(report: dict[str, Any], found: Evidence) -> bytes:
    """The report as an HTML page that needs nothing beside itself."""
    title = f"{report['pipeline']} version {report['version']}: {report['outcome']}"
    parts = [
        f"<h1>{escape(report['pipeline'])} version {report['version']}: "
        f"<span class='{report['outcome'].split()[0]}'>{report['outcome']}</span></h1>",
        "<ul>", *(f"<li>{escape(reason)}</li>" for reason in report["reasons"]), "</ul>",
    ]  # fmt: skip
    if report["approval"] is not None:
        parts.append(f"<p>Approved by {escape(report['approval']['by'])}: {escape(report['approval']['why'])}</p>")
    parts += [
        *_comparison(report),
        *_slices(report),
        *_calibration(report),
        *_shadow(report),
        *_data(report, found),
        *_origin(report),
    ]
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>"
    ).encode()


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table; the cells are HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _comparison(report: dict[str, Any]) -> list[str]:
    metric, gate = report["gate"]["metric"], report["gate"]
    bars = [("this version", report["value"])]
    if report["champion_value"] is not None:
        bars.append((f"champion {report['champion']}", report["champion_value"]))
    recent = []
    if report["recent_value"] is not None:
        recent = [("this version", report["recent_value"]), ("champion", report["champion_recent_value"])]
    parts = [
        f"<h2>{metric}</h2>",
        plots.bars(
            bars, mark=gate["floor"], caption=f"on {report['frozen']['rows']} frozen rows; the line is the floor"
        ),
    ]
    if recent:
        parts.append(plots.bars(recent, caption=f"on {report['rows']['recent']} recent rows that were not trained on"))
    if report["lead"] is not None:
        parts.append(
            f"<p>Lead {report['lead']:.4f}, more than {gate['margin']:g} is asked; p {report['chance']:.2g}, "
            f"below {gate['significance']:g} is asked.</p>"
        )
    return parts


def _slices(report: dict[str, Any]) -> list[str]:
    if not report["slices"]:
        return []
    rows = [
        [escape(one["field"]), escape(one["value"]), str(one["rows"]),
         f"{one['metric']:.4f}" if one["metric"] is not None else "none", f"{one['floor']:g}",
         "not judged" if not one["judged"] else "" if one["holds"] else "<span class='alarm'>missed</span>"]
        for one in report["slices"]
    ]  # fmt: skip
    return ["<h2>Slices</h2>", _table(["field", "value", "rows", report["gate"]["metric"], "floor", ""], rows)]


def _calibration(report: dict[str, Any]) -> list[str]:
    if report["calibration"] is None:
        return []
    points = [(one["confidence"], one["accuracy"], one["rows"]) for one in report["bins"]]
    return [
        "<h2>Calibration</h2>",
        plots.reliability(points, caption="accuracy by confidence; on the line a probability means what it says"),
        f"<p>Expected calibration error {report['calibration']:.3f}, "
        f"at most {report['gate']['calibration']:g} is asked.</p>",
    ]


def _shadow(report: dict[str, Any]) -> list[str]:
    parts = []
    if (shadow := report["shadow"]) is not None:
        parts.append(
            f"<p>In shadow it said the same as the champion to {shadow['agreement']:.1%} of {shadow['rows']} rows.</p>"
        )
        if shadow["value"] is not None:
            bars = [("this version", shadow["value"]), (f"champion {report['champion']}", shadow["champion_value"])]
            parts.append(plots.bars(bars, caption=f"on {shadow['labelled']} predictions whose label came"))
    if report["latency"]:
        each = [[f"version {number}", f"{1e6 * taken:.0f} µs"] for number, taken in report["latency"].items()]
        parts.append(_table(["one row, here", ""], each))
    return ["<h2>Beside the champion</h2>", *parts] if parts else []


def _data(report: dict[str, Any], found: Evidence) -> list[str]:
    if not report["checks"] or found.baseline is None:
        return []
    rows = [
        [one["window"], escape(one["what"]), f"{one['size']:.3f}", f"{one['chance']:.1g}",
         "<span class='alarm'>alarm</span>" if one["alarm"] else ""]
        for one in report["checks"]
    ]  # fmt: skip
    parts = ["<h2>New data against the rows there were when the champion was trained</h2>"]
    for feature in found.baseline.features:
        after = found.windows["new"].columns.get(feature.name)
        if after is not None:
            numeric = feature.type in ("double", "long")
            table = counts(found.baseline.columns[feature.name], after, numeric=numeric)
            parts.append(plots.shares(table, caption=f"{feature.name}: rows of then (grey), new (blue)"))
    return [*parts, _table(["window", "what", "size", "p", ""], rows)]


def _origin(report: dict[str, Any]) -> list[str]:
    rows = [["run", escape(report["run"])], ["lake snapshot", report["snapshot"]]]
    rows += [[f"rows, {name}", str(count)] for name, count in report["rows"].items()]
    rows += [["frozen set, SHA-256", f"<code>{report['frozen']['sha256']}</code>"]]
    return ["<h2>Where it is from</h2>", _table(["", ""], rows)]
