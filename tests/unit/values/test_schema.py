"""The schema is closed, complete, and of the same mind as the models and the defaults."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from levada.values import reference, schema
from levada.values.chart import Values, defaults, merge

# Maps whose keys are the user's, or another program's; all other maps are closed.
OPEN = {"annotations", "labels", "nodeSelector", "affinity", "volume", "config", "extraArgs"}
SWITCHES = {"pullSecrets", "zones", "allowedHosts"}
NAMED = {"pipelines", "fields", "extraEnv", "extraVolumes"}

SCHEMA = schema.schema()
VALIDATOR = jsonschema_rs.Draft7Validator(SCHEMA)
DEFAULTS = defaults()

IRIS: dict[str, Any] = {
    "key": "plant",
    "fields": {
        "plant": {"type": "string"},
        "petal_width": {"type": "double", "rule": "petal_width BETWEEN 0.1 AND 15", "required": True},
        "species": {"type": "string", "oneOf": ["setosa", "versicolor"]},
    },
    "topic": {"partitions": 3, "retention": "7d"},
    "stream": {"enabled": True, "engine": "python", "commitEvery": "10s"},
    "lake": {"dedupeWindow": "24h"},
    "model": {
        "enabled": True,
        "label": "species",
        "features": ["petal_width"],
        "trainer": "levada.registry.trainers:linear",
        "schedule": "@hourly",
        "gate": {"metric": "accuracy", "floor": 0.9, "margin": 0.005},
    },
    "serving": {"enabled": True, "replicas": 2},
}


def maximal() -> dict[str, Any]:
    """The defaults with an entry in every list and map that users fill."""
    knobs = {
        "tolerations": [
            {"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule", "tolerationSeconds": 5}
        ],
        "extraEnv": {"NAME": "value"},
        "extraVolumes": {"mine": {"mountPath": "/mine", "volume": {"configMap": {"name": "mine"}}}},
    }
    return merge(fill(DEFAULTS, knobs), {"global": {"pipelines": {"iris": IRIS}}})


def fill(values: dict[str, Any], knobs: dict[str, Any]) -> dict[str, Any]:
    """Put `knobs` into every workload."""
    inner = {key: fill(value, knobs) if isinstance(value, dict) else value for key, value in values.items()}
    return inner | knobs if "extraVolumes" in inner else inner


def closed_keys(values: Any, path: tuple[Any, ...] = (), named: bool = False) -> Iterator[tuple[Any, ...]]:
    """Path of every key that the schema knows by name."""
    if isinstance(values, list):
        for index, value in enumerate(values):
            yield from closed_keys(value, (*path, index))
    if isinstance(values, dict):
        for key, value in values.items():
            if not named:
                yield (*path, key)
            if key not in OPEN | SWITCHES or named:
                yield from closed_keys(value, (*path, key), named=key in NAMED and not named)


def renamed(values: dict[str, Any], path: tuple[Any, ...], new: str) -> dict[str, Any]:
    """The values with one key misspelt."""
    changed = copy.deepcopy(values)
    block: Any = changed
    for step in path[:-1]:
        block = block[step]
    block[new] = block.pop(path[-1])
    return changed


def test_what_is_generated_is_up_to_date() -> None:
    for file, text in ((schema.FILE, schema.text()), (reference.FILE, reference.text())):
        assert file.read_text() == text, f"{file.name}: run python -m levada.values write"


def test_models_and_defaults_have_the_same_keys() -> None:
    """Every field of the models is required and no other is allowed, so a key on one side only is an error."""
    Values.model_validate(DEFAULTS)


def test_defaults_and_a_full_set_of_values_are_accepted() -> None:
    for values in (DEFAULTS, maximal()):
        assert [error.message for error in VALIDATOR.iter_errors(values)] == []


def test_values_of_a_room_that_is_switched_off_are_accepted() -> None:
    """Helm then checks without the room's defaults; and it gives every subchart a copy of global."""
    shared = {"global": DEFAULTS["global"]}
    values = DEFAULTS | {"ingest": {"enabled": False}, "stream": DEFAULTS["stream"] | shared, "lib": shared}
    VALIDATOR.validate(values)


def test_a_misspelt_key_is_refused_at_every_depth() -> None:
    values = maximal()
    paths = list(closed_keys(values))
    assert len(paths) > 500
    accepted = [path for path in paths if VALIDATOR.is_valid(renamed(values, path, f"{path[-1]}x"))]
    assert accepted == []


def test_names_of_a_users_own_entries_are_checked() -> None:
    values = maximal()
    for path, bad in [
        (("global", "pipelines", "iris"), "Iris"),
        (("global", "pipelines", "iris"), "i" * 41),
        (("global", "pipelines", "iris", "fields", "species"), "Species"),
        (("stream", "sink", "extraEnv", "NAME"), "not-a-name"),
        (("stream", "sink", "extraVolumes", "mine"), "Not_a_name"),
    ]:
        assert not VALIDATOR.is_valid(renamed(values, path, bad)), (path, bad)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("fields.species.type", "text"),
        ("fields.species.oneOf", "setosa"),
        ("fields.petal_width.rule", 5),
        ("fields", {}),
        ("topic.partitions", "3"),
        ("topic.partitions", 0),
        ("topic.retention", "7 days"),
        ("stream.engine", "fast"),
        ("stream.enabled", "yes"),
        ("lake.dedupeWindow", 24),
        ("model.label", None),
        ("model.trainer", "linear"),
        ("model.gate.significance", 1.5),
        ("serving.replicas", 0),
    ],
)
def test_a_pipeline_with_a_wrong_value_is_refused(path: str, value: object) -> None:
    pipeline = copy.deepcopy(IRIS)
    *blocks, last = path.split(".")
    block = pipeline
    for step in blocks:
        block = block[step]
    block[last] = value
    errors = list(VALIDATOR.iter_errors(merge(DEFAULTS, {"global": {"pipelines": {"iris": pipeline}}})))
    assert len(errors) == 1
    assert ".".join(map(str, errors[0].instance_path)) == f"global.pipelines.iris.{path}"


@pytest.mark.parametrize("missing", ["fields", "fields.species.type", "model.label"])
def test_a_pipeline_without_what_it_needs_is_refused(missing: str) -> None:
    pipeline = copy.deepcopy(IRIS)
    *blocks, last = missing.split(".")
    block = pipeline
    for step in blocks:
        block = block[step]
    del block[last]
    assert not VALIDATOR.is_valid(merge(DEFAULTS, {"global": {"pipelines": {"iris": pipeline}}}))


@pytest.mark.parametrize(
    "values",
    [
        {"stream": {"sink": {"image": {"tag": "latest"}}}},
        {"stream": {"sink": {"image": {"digest": "sha256:abc"}}}},
        {"stream": {"sink": {"resources": {"requests": {"cpu": "lots"}}}}},
        {"stream": {"sink": {"resources": {"requests": {"gpu": 1}}}}},
        {"ingest": {"collector": {"replicas": None}}},
        {"ingest": {"topics": {"schedule": "often"}}},
        {"global": {"kafka": {"bootstrap": "broker"}}},
        {"global": {"kafka": {"protocol": "PLAINTEXT"}}},
        {"global": {"s3": {"endpoint": "s3.example.com"}}},
        {"global": {"region": {"role": "both"}}},
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any]) -> None:
    assert len(list(VALIDATOR.iter_errors(merge(DEFAULTS, values)))) == 1


def subschemas(node: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema with the name of the property that it describes."""
    if isinstance(node, dict):
        if node.keys() & {"type", "$ref", "enum", "const", "anyOf"}:
            yield name, node
        for key in ("properties", "definitions", "patternProperties"):
            for inner_name, inner in node.get(key, {}).items():
                yield from subschemas(inner, inner_name)
        for key in ("items", "additionalProperties"):
            yield from subschemas(node.get(key), name)


def test_only_the_listed_maps_are_open() -> None:
    found = {
        name for name, each in subschemas(SCHEMA) if each.get("type") == "object" and each.get("additionalProperties")
    }
    assert found == OPEN | SWITCHES
    bare = [
        name for name, each in subschemas(SCHEMA) if each.get("type") == "object" and "additionalProperties" not in each
    ]
    assert bare == []


def test_every_leaf_says_what_it_means() -> None:
    for definition in [SCHEMA, *SCHEMA["definitions"].values()]:
        for name, each in definition["properties"].items():
            assert "$ref" in each or each.get("description") or name == "lib", name


def test_the_schema_needs_no_network_and_little_space() -> None:
    text = schema.text()
    assert len(text) < 200_000
    assert all(ref.startswith("#/definitions/") for ref in re.findall(r'"\$ref": "([^"]*)"', text))
    used = set(re.findall(r'"#/definitions/([^"]*)"', text))
    assert used == set(json.loads(text)["definitions"])


def test_the_page_names_every_value() -> None:
    page = reference.text()
    knobs, rooms = page.split("## global", 1)
    for path in closed_keys(DEFAULTS):
        key = ".".join(map(str, path))
        block: Any = DEFAULTS
        for step in path:
            block = block[step]
        if not isinstance(block, dict) or path[-1] in OPEN | SWITCHES | NAMED:
            knob = any(f"`{key.split('.', depth)[-1]}`" in knobs for depth in range(1, len(path)))
            assert f"`{key}`" in rooms or knob, key
