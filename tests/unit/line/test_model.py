"""The screen about a model: what it says, and that it fits."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from levada.evidence import GATE_TAG, ROLLBACK_TAG, RUN_TAG, Outcome, Record
from levada.line.model import read, render
from levada.line.target import LineError, Target
from levada.pipeline import Pipeline, parse_pipeline
from levada.watched import WATCH_TAG, Shadowed, Watched

MEASURES = ("sepal_length", "sepal_width", "petal_length", "a_feature_with_a_rather_long_name_that_nobody_would_give")
IRIS = parse_pipeline(
    {
        "fields": {**{name: {"type": "double"} for name in MEASURES}, "species": {"type": "string"}},
        "model": {"label": "species"},
    },
    "iris",
)
METRICS = """
# TYPE levada_model_version_info gauge
levada_model_version_info{name="iris",version="3"} 1.0
# TYPE levada_shadow_agreement gauge
levada_shadow_agreement{name="iris",version="5"} 0.975
# TYPE levada_shadow_rows counter
levada_shadow_rows_total{name="iris",version="5"} 812.0
# TYPE levada_shadow_seconds histogram
levada_shadow_seconds_sum{name="iris",version="5"} 0.02
levada_shadow_seconds_count{name="iris",version="5"} 100.0
"""
WATCHED = Watched(
    "2026-11-28T11:00:03+00:00", 10_000, "accuracy", 120, 0.91, 0.9667, 0.031,
    {"petal_length": 0.3112, "species": 0.021, MEASURES[3]: 0.004}, 0.2,
    ("petal_length: population stability index 0.31 (bound 0.2), Kolmogorov-Smirnov p 1e-31",),
    shadow=Shadowed("5", 812, 0.975, 120, 0.94, 0.91),
)  # fmt: skip


class Fake:
    """A target whose registry has these versions, and whose predictor says METRICS."""

    def __init__(
        self, versions: list[dict[str, Any]], pipeline: Pipeline = IRIS, metrics: str | None = METRICS
    ) -> None:
        self._pipelines = {pipeline.name: pipeline}
        self._versions, self._metrics = versions, metrics

    pipeline = Target.pipeline

    def pipelines(self) -> dict[str, Pipeline]:
        return self._pipelines

    def endpoint(self, component: str, port: int) -> Any:
        return SimpleNamespace(request=self.request if component == "mlflow" else self.metrics)

    def request(self, method: str, path: str, **options: Any) -> Any:
        if path.endswith("model-versions/get"):
            (found,) = [each for each in self._versions if each["version"] == options["params"]["version"]]
            return SimpleNamespace(is_success=True, json=lambda: {"model_version": found})
        assert path.endswith("model-versions/search")
        newest = self._versions[: int(options["params"]["max_results"])]
        return SimpleNamespace(is_success=True, json=lambda: {"model_versions": newest})

    def metrics(self, method: str, path: str, **options: Any) -> Any:
        if self._metrics is None:
            raise LineError("predictor-iris:8080 does not answer")
        return SimpleNamespace(text=self._metrics)


def version(number: int, outcome: Outcome, champion: str | None, generation: int, **tags: str) -> dict[str, Any]:
    record = Record(
        outcome, str(number), champion, "accuracy", 0.9 + number / 100, 0.93,
        "accuracy 0.9300 leads champion 2 by 0.0133 (p 0.0021), asked are more than 0.005 and p below 0.01", "0" * 64,
        f"2026-11-28T0{number}:00:00.000000+00:00", generation,
    )  # fmt: skip
    found = {GATE_TAG: record.to_json(), RUN_TAG: f"scheduled__2026-11-28T0{number}:00:00+00:00", **tags}
    return {
        "version": str(number),
        "creation_timestamp": 1795858000000 + number,
        "tags": [{"key": key, "value": value} for key, value in found.items()],
    }


def screen(*versions: dict[str, Any], **options: Any) -> str:
    text = render(read(cast(Target, Fake(list(versions), **options)), "iris"))
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_all_there_is_to_say_fits_on_a_screen() -> None:
    text = screen(
        version(5, "needs approval", "3", 2),
        version(4, "kept", "3", 2),
        version(3, "promoted", "3", 2, **{WATCH_TAG: WATCHED.to_json()}),
        version(2, "promoted", "2", 1),
    )
    print(text)
    for part in (
        "CHAMPION     version 3, promoted 2026-11-28 03:00 by the gate",
        "CHALLENGER   version 5, needs approval",
        "in shadow: it agrees on 97.5% of 812 rows, 0.20 ms a run",
        "on 120 rows whose label came: 0.9400, the champion 0.9100",
        "WATCHED      2026-11-28 11:00, 10000 predictions, 120 with their label",
        "QUALITY      accuracy 0.9100 live, 0.9667 on the frozen set",
        "              0.311  petal_length",
        "species (as predicted)",
        "ALARM        petal_length: population stability index 0.31",
        "5        2026-11-28 09:26  needs approval  0.9500",
        "NEXT         version 5 waits for a person",
    ):
        assert part in text, part
    flat = " ".join(text.split())
    assert "trigger iris-approve in Airflow with run scheduled__2026-11-28T05:00:00+00:00 and a reason" in flat
    assert "what answers now" not in text
    assert len(text.splitlines()) < 40


def test_a_champion_is_found_however_many_versions_came_since() -> None:
    since = [{**version(9, "kept", "3", 2), "version": str(number)} for number in range(300, 3, -1)]
    text = screen(*since, version(3, "promoted", "3", 2, **{WATCH_TAG: WATCHED.to_json()}))
    assert "CHAMPION     version 3, promoted 2026-11-28 03:00 by the gate" in text
    assert "WATCHED      2026-11-28 11:00" in text


def test_before_the_first_training_and_before_the_first_look() -> None:
    text = screen(metrics=None)
    assert "CHAMPION     none yet" in text
    assert "trigger iris-train in Airflow" in text
    text = screen(version(1, "promoted", "1", 1), metrics=None)
    assert "its predictor does not answer" in text
    assert "WATCHED      not yet" in text
    assert "trigger iris-watch in Airflow" in text


def test_a_roll_back_is_told_with_who_and_why() -> None:
    back = Record(
        "rolled back", "3", "2", "accuracy", 0.93, None, "rolled back from version 3 to 2", "0" * 64,
        "2026-11-28T09:00:00.000000+00:00", 3, "ada", "complaints from the north",
    )  # fmt: skip
    tags = {ROLLBACK_TAG: back.to_json()}
    text = screen(version(3, "promoted", "3", 2, **tags), version(2, "promoted", "2", 1, **tags))
    flat = " ".join(text.split())
    assert "version 2, rolled back 2026-11-28 09:00 by ada: complaints from the north" in flat
    assert "what answers now is version 3" in flat


def test_few_predictions_are_said_to_be_few_and_a_broken_tag_is_none() -> None:
    few = Watched("2026-11-28T11:00:03+00:00", 3, "accuracy", note="3 predictions are logged, 20 are needed")
    text = screen(version(3, "promoted", "3", 1, **{WATCH_TAG: few.to_json()}))
    assert "3 predictions are logged, 20 are needed" in text
    assert "QUALITY" not in text
    for broken in ("{}", "[1]", "null", WATCHED.to_json().replace("0.3112", '"x"')):
        assert "WATCHED      not yet" in screen(version(3, "promoted", "3", 1, **{WATCH_TAG: broken}))


@pytest.mark.parametrize("tag", [GATE_TAG, ROLLBACK_TAG])
@pytest.mark.parametrize(
    ("name", "value"),
    [("generation", "9"), ("decided_at", "now"), ("decided_at", 7), ("value", "0.9"), ("champion", ["3"]),
     ("reason", None), ("reason", "\ud800"), ("outcome", ["kept"]), ("approved_by", {})],
)  # fmt: skip
def test_a_tag_that_no_gate_wrote_is_told_and_ignored(tag: str, name: str, value: Any) -> None:
    good = version(3, "promoted", "3", 1)
    forged = {**json.loads(version(4, "kept", "3", 1)["tags"][0]["value"]), name: value}
    text = screen(version(4, "kept", "3", 1, **{tag: json.dumps(forged)}), good)
    assert "CHAMPION     version 3, promoted" in text
    assert f"IGNORED      {tag} of version 4: no record that a gate wrote" in text
    assert "IGNORED" not in screen(good)


def test_a_challenger_that_was_promoted_is_none_any_more() -> None:
    shadowed = WATCHED.to_json()
    text = screen(
        version(5, "promoted", "5", 3, **{WATCH_TAG: shadowed}), version(3, "promoted", "3", 2),
        metrics=METRICS.replace('version="3"', 'version="5"'),
    )  # fmt: skip
    assert "CHAMPION     version 5" in text
    assert "CHALLENGER" not in text


def test_what_is_no_model_is_named() -> None:
    plain = parse_pipeline({"fields": {"a": {"type": "long"}}}, "plain")
    with pytest.raises(LineError, match=r"plain has no model: declare one in global\.pipelines\.plain\.model"):
        read(cast(Target, Fake([], plain)), "plain")
    with pytest.raises(LineError, match="pipeline iriss is not declared; declared are iris"):
        read(cast(Target, Fake([])), "iriss")
    assert json.loads(WATCHED.to_json())["shadow"]["version"] == "5"
