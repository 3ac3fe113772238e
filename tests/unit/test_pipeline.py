"""The declaration: what is derived from it, and that every mistake is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from levada.pipeline import Declaration, PipelineError, load_pipeline, load_pipelines, parse_pipeline, seconds

IRIS: dict[str, Any] = {
    "fields": {
        "sepal_length": {"type": "double", "rule": "sepal_length BETWEEN 0.5 AND 30"},
        "seen": {"type": "timestamp", "required": False},
        "id": {"type": "string"},
        "species": {"type": "string", "oneOf": ["setosa", "virginica"]},
    },
    "key": "id",
    "model": {"label": "species"},
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**IRIS, **changes}


ORDERS: dict[str, Any] = {
    "key": "user_id",
    "eventTime": "ordered_at",
    "fields": {
        "user_id": {"type": "string"},
        "pin": {"type": "string", "rule": "REGEXP(pin, '^[0-9]{4}$')", "sensitive": "argon2id"},
        "product": {"type": "string", "oneOf": ["iu_ticket"]},
        "ordered_at": {"type": "timestamp"},
    },
    "screen": {"busy": {"rate": {"field": "user_id", "events": 5}}, "odd": {"rule": "product = user_id"}},
}


def orders(**changes: Any) -> dict[str, Any]:
    return {**ORDERS, **changes}


def test_sensitive_fields_are_no_features() -> None:
    pipeline = parse_pipeline(orders(key=None, model={"label": "product"}), "orders")
    assert pipeline.sensitive == {"pin"}
    assert pipeline.features == ("user_id",)
    assert pipeline.review_topic == "orders.review"


def test_everything_is_derived() -> None:
    pipeline = parse_pipeline(IRIS, "my-iris")
    assert pipeline.topic_name == "my-iris"
    assert pipeline.dead_topic == "my-iris.dead"
    assert pipeline.table == ("events", "my_iris")
    assert pipeline.features == ("sepal_length",)
    assert pipeline.topic.partitions == 3


def test_seconds() -> None:
    assert [seconds(text) for text in ("10s", "7d", "500ms", "2h", "3m")] == [10, 604800, 0.5, 7200, 180]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (changed(fieldz={}), "fieldz is not a known key"),
        (changed(model={"label": "specis"}), "model.label names the field `specis`.*did you mean `species`"),
        (changed(model={"label": "sepal_length"}), "model.label `sepal_length` is a double"),
        (changed(model={"label": "species", "features": ["species"]}), "holds the label"),
        (changed(model={"label": "species", "features": ["seen"]}), "is a timestamp"),
        (changed(key="nope"), "key names the field `nope`"),
        (changed(key="seen"), "is not required"),
        (changed(fields={"a": {"type": "double", "rule": "b > 1"}}, key=None, model=None), r"fields\.a\.rule names"),
        (changed(fields={"a": {"type": "long", "oneOf": ["1"]}}, key=None, model=None), "oneOf is for string"),
        (changed(fields={"A": {"type": "long"}}, key=None, model=None), "fields.A"),
        (changed(fields={"a": {"type": "int"}}, key=None, model=None), "fields.a.type"),
        (changed(fields={}, key=None, model=None), "fields"),
        (changed(topic={"retention": "7 days"}), "topic.retention"),
        (changed(fields={"label": {"type": "string"}}, key=None, model={"label": "label"}), "no features"),
        (orders(fields={"n": {"type": "long", "sensitive": "hmac"}}, key=None), "sensitive is for string fields"),
        (orders(key="pin"), "key: `pin` is sensitive; only `sensitive: hmac`"),
        (orders(model={"label": "product", "features": ["pin"]}), "model: `pin` is sensitive"),
        (orders(model={"label": "pin"}), "model: `pin` is sensitive"),
        (orders(eventTime="ordered"), "eventTime names the field `ordered`.*did you mean `ordered_at`"),
        (orders(eventTime="product"), "eventTime: `product` must be a required field of type timestamp"),
        (orders(screen={"busy": {"rate": {"field": "user", "events": 5}}}), "screen.busy.rate.field names the field"),
        (orders(screen={"odd": {"rule": "product LIKE 1"}}), "screen.odd.rule"),
        (orders(screen={"odd": {}}), "screen.odd: give one of rate and rule"),
        (orders(stream={"replicas": 4}), "stream.replicas is 4, the topic has 3 partitions"),
    ],
)
def test_mistakes_are_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_pipeline(entry, "iris")


@pytest.mark.parametrize("name", ["Iris", "1iris", "iris-", "a" * 41, "ir_is", ""])
def test_bad_names(name: str) -> None:
    with pytest.raises(PipelineError, match="name"):
        parse_pipeline(IRIS, name)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "iris.json").write_text(json.dumps(IRIS))
    (tmp_path / "two.yaml").write_text("fields: {a: {type: long}}")
    assert sorted(load_pipelines(tmp_path)) == ["iris", "two"]
    assert load_pipeline(tmp_path, "two").name == "two"
    with pytest.raises(PipelineError, match="declared are iris, two"):
        load_pipeline(tmp_path, "three")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(PipelineError, match=r"(?s)pipeline bad: .*cannot be read.*pipeline list: .*mapping"):
        load_pipelines(tmp_path)


def test_a_missing_folder_of_declarations_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"/none is no folder: LEVADA_PIPELINES must name"):
        load_pipelines(tmp_path / "none")


def test_schema_is_closed_and_documented() -> None:
    schema = Declaration.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["additionalProperties"] is False
        for name, entry in definition["properties"].items():
            assert "description" in entry or "$ref" in entry or entry.get("allOf"), name
