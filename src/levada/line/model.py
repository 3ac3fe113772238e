"""One screen about a pipeline's model: champion, challenger, live quality, drift, trainings, and what waits."""

from __future__ import annotations

import contextlib
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from levada import evidence
from levada.evidence import GATE_TAG, ROLLBACK_TAG, RUN_TAG, Record
from levada.line.registry import model_version, model_versions
from levada.line.target import LineError, Target
from levada.pipeline import Pipeline
from levada.watched import WATCH_TAG, Watched

_TRAININGS: Final = 5
_WIDTH: Final = 80
_INDENT: Final = 13


@dataclass(frozen=True)
class Version:
    """One registered version."""

    number: str
    at: str
    """When it was registered, RFC 3339, UTC."""
    run: str
    record: Record | None
    """What the gate said of it; None if it did not yet."""


@dataclass(frozen=True)
class Live:
    """What a predictor says of itself."""

    version: str
    """The version that answers; empty: none."""
    shadow_version: str = ""
    shadow_rows: int = 0
    shadow_agreement: float = 0.0
    shadow_seconds: float = 0.0
    """Mean of a run of the challenger."""


@dataclass(frozen=True)
class ModelState:
    """A pipeline's model, as the registry and its predictor tell."""

    pipeline: Pipeline
    versions: list[Version]
    """Newest first."""
    decision: Record | None
    """What made the champion that; None before the first."""
    watched: Watched | None
    live: Live | None
    """None where no predictor answers."""
    unreadable: list[str]
    """Tags that are no record of the gate, as "<tag> of version <number>"."""

    @property
    def waiting(self) -> Version | None:
        """The newest version, if it waits for a person."""
        newest = self.versions[0] if self.versions else None
        waits = newest is not None and newest.record is not None and newest.record.outcome == "needs approval"
        return newest if waits else None


def read(target: Target, name: str) -> ModelState:
    """Look at a model now.

    Raises:
        LineError: there is no such pipeline, it has no model, or the registry does not answer.
    """
    pipeline = target.pipeline(name)
    if pipeline.model is None:
        raise LineError(f"pipeline {name} has no model: declare one in global.pipelines.{name}.model, with its label")
    found = model_versions(target, name)
    latest = evidence.claimed(version["tags"] for version in found)
    if latest is not None and latest.champion is not None and latest.champion not in {v["version"] for v in found}:
        found += filter(None, [model_version(target, name, latest.champion)])  # many versions came since
    records = {
        f"{tag} of version {version['version']}": _record(version["tags"], tag)
        for version in found
        for tag in (GATE_TAG, ROLLBACK_TAG)
        if tag in version["tags"]
    }
    decision = watched = None
    if latest is not None and latest.champion is not None:
        made = [
            record
            for record in records.values()
            if record is not None
            and record.outcome in ("promoted", "rolled back")
            and (record.generation, record.champion) == (latest.generation, latest.champion)
        ]
        decision = made[0] if made else latest
        (tag,) = [v["tags"].get(WATCH_TAG, "") for v in found if v["version"] == latest.champion] or [""]
        with contextlib.suppress(ValueError):
            watched = Watched.from_json(tag)
    versions = [
        Version(
            version["version"],
            datetime.fromtimestamp(int(version["creation_timestamp"]) / 1000, UTC).isoformat(timespec="seconds"),
            version["tags"].get(RUN_TAG, ""),
            _record(version["tags"], GATE_TAG),
        )
        for version in found
    ]
    unreadable = [where for where, record in records.items() if record is None]
    return ModelState(pipeline, versions, decision, watched, _live(target, name), unreadable)


def _record(tags: dict[str, str], tag: str) -> Record | None:
    try:
        return Record.from_json(tags.get(tag, ""))
    except ValueError:
        return None


def _live(target: Target, name: str) -> Live | None:
    try:
        answer = target.endpoint(f"predictor-{name}", 8080).request("GET", "/metrics", retry_for=5)
    except (LineError, httpx.HTTPError):
        return None
    found: dict[str, tuple[dict[str, str], float]] = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    nothing: tuple[dict[str, str], float] = ({}, 0.0)
    version = found.get("levada_model_version_info", nothing)[0].get("version", "")
    labels, agreement = found.get("levada_shadow_agreement", nothing)
    rows, seconds, runs = (
        found.get(f"levada_shadow_{what}", nothing)[1] for what in ("rows_total", "seconds_sum", "seconds_count")
    )
    return Live(version, labels.get("version", ""), int(rows), agreement, seconds / max(runs, 1.0))


def render(state: ModelState) -> str:
    """The screen, at most 80 columns wide."""
    model: Any = state.pipeline.model
    lines = [f"Model {state.pipeline.name}: {model.label} from {len(state.pipeline.features)} features; times are UTC"]
    lines += [
        "",
        *_champion(state),
        *_challenger(state),
        "",
        *_watched(state),
        "",
        *_trainings(state, model.gate.metric),
    ]
    if state.unreadable:
        lines += ["", *_told("IGNORED", f"{', '.join(state.unreadable)}: no record that a gate wrote")]
    if todo := _next(state):
        lines += ["", *_told("NEXT", todo)]
    return "\n".join(lines)


def _told(title: str, text: str) -> list[str]:
    """A title, and a text beside it that goes on below itself."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{title:<{_INDENT}}", subsequent_indent=" " * _INDENT, break_on_hyphens=False
    ) or [title]  # fmt: skip


def _when(at: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M}"


def _champion(state: ModelState) -> list[str]:
    decision = state.decision
    if decision is None:
        return _told("CHAMPION", "none yet")
    by = decision.approved_by or "the gate"
    why = f": {decision.approved_why}" if decision.approved_why else ""
    lines = _told(
        "CHAMPION", f"version {decision.champion}, {decision.outcome} {_when(decision.decided_at)} by {by}{why}"
    )
    lines += _told("", decision.reason)
    if state.live is None:
        lines += _told("", "its predictor does not answer")
    elif state.live.version != decision.champion:
        lines += _told(
            "", f"what answers now is {f'version {state.live.version}' if state.live.version else 'nothing'}"
        )
    return lines


def _challenger(state: ModelState) -> list[str]:
    champion = state.decision.champion if state.decision is not None else None
    newest = state.versions[0] if state.versions else None
    live, shadow = state.live, state.watched.shadow if state.watched is not None else None
    if live is not None and live.shadow_version == champion:  # promoted a moment ago
        live = None
    if shadow is not None and shadow.version == champion:
        shadow = None
    number = live.shadow_version if live is not None and live.shadow_version else shadow.version if shadow else ""
    if not number and (newest is None or newest.number == champion):
        return []
    version = next((each for each in state.versions if each.number == number), newest)
    outcome = version.record.outcome if version is not None and version.record is not None else "not judged yet"
    lines = _told("CHALLENGER", f"version {number or (version.number if version else '')}, {outcome}")
    if live is not None and live.shadow_version:
        lines += _told(
            "", f"in shadow: it agrees on {live.shadow_agreement:.1%} of {live.shadow_rows} rows, "
            f"{1000 * live.shadow_seconds:.2f} ms a run",
        )  # fmt: skip
    if shadow is not None and shadow.value is not None and shadow.champion_value is not None:
        lines += _told(
            "",
            f"on {shadow.labelled} rows whose label came: {shadow.value:.4f}, the champion {shadow.champion_value:.4f}",
        )
    return lines


def _watched(state: ModelState) -> list[str]:
    found = state.watched
    if found is None:
        return _told("WATCHED", "not yet")
    lines = _told("WATCHED", f"{_when(found.at)}, {found.rows} predictions, {found.labelled} with their label")
    if found.value is not None and found.frozen_value is not None:
        lines += _told("QUALITY", f"{found.metric} {found.value:.4f} live, {found.frozen_value:.4f} on the frozen set")
        if found.calibration is not None:
            lines += _told("", f"calibration error {found.calibration:.3f}")
    if found.note:
        lines += _told("", found.note)
    if found.drift:
        lines += _told("DRIFT", f"population stability index, bound {found.bound:g}")
        for field, size in sorted(found.drift.items(), key=lambda each: -each[1]):
            of = f"{field} (as predicted)" if state.pipeline.model and field == state.pipeline.model.label else field
            lines.append(f"{'':<{_INDENT}}{size:6.3f}  {of[: _WIDTH - _INDENT - 8]}")
    for alarm in found.alarms:
        lines += _told("ALARM", alarm)
    return lines


def _trainings(state: ModelState, metric: str) -> list[str]:
    if not state.versions:
        return _told("TRAININGS", "none yet")
    lines = [f"{'TRAININGS':<{_INDENT}}{'VERSION':<9}{'REGISTERED':<18}{'OUTCOME':<16}{metric.upper()}"]
    for version in state.versions[:_TRAININGS]:
        outcome = version.record.outcome if version.record is not None else "not judged yet"
        value = f"{version.record.value:.4f}" if version.record is not None else "-"
        lines.append(f"{'':<{_INDENT}}{version.number:<9}{_when(version.at):<18}{outcome:<16}{value}")
    return lines


def _next(state: ModelState) -> str:
    """What a person could do, if anything waits for one."""
    name = state.pipeline.name
    if (waiting := state.waiting) is not None and waiting.record is not None:
        return (
            f"version {waiting.number} waits for a person: {waiting.record.reason}. Read gate/report.html of its run "
            f"in MLflow; to let it serve, trigger {name}-approve in Airflow with run {waiting.run} and a reason"
        )
    if state.decision is None:
        return f"trigger {name}-train in Airflow, once there are labelled events"
    if state.watched is None and state.pipeline.logs:
        return f"ask for predictions, and trigger {name}-watch in Airflow if its schedule is none"
    if state.watched is not None and state.watched.alarms:
        return f"look at what changed; trigger {name}-train in Airflow, or {name}-rollback"
    return ""
