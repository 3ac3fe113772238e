"""`values.schema.json` of the chart: closed, self-contained, and of the draft that every Helm reads."""

from __future__ import annotations

import json
from typing import Any

from levada.values.chart import CHART, Values

FILE = CHART / "values.schema.json"

Schema = dict[str, Any]


def text() -> str:
    """What FILE must hold."""
    return json.dumps(schema(), indent=1) + "\n"


def schema() -> Schema:
    """The schema of the values as they are after all files were merged."""
    made = Values.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = {name: _tidy(each) for name, each in made.pop("$defs").items()}
    root = _tidy(made)
    # Helm copies `global` into the values of each subchart, and makes an entry for the library chart.
    copy = {"$ref": "#/definitions/Global"}
    for subchart in sorted(path.name for path in CHART.glob("charts/*/")):
        if subchart in root["properties"]:
            definitions[root["properties"][subchart]["$ref"].rsplit("/", 1)[-1]]["properties"]["global"] = copy
        else:
            empty = {"type": "object", "properties": {"global": copy}, "additionalProperties": False}
            root["properties"][subchart] = empty
    return {"$schema": "http://json-schema.org/draft-07/schema#", **root, "definitions": definitions}


def _tidy(schema: Schema) -> Schema:
    """Say in draft 7 what pydantic said, without what only Python knows."""
    kept = {key: value for key, value in schema.items() if key != "title"}
    if "anyOf" in kept:
        # An optional field is one that may be left out; null is how Helm takes a default away.
        choices = [choice for choice in kept.pop("anyOf") if choice != {"type": "null"}]
        plain = all(choice.keys() == {"type"} for choice in choices)
        merged = {"type": [choice["type"] for choice in choices]} if plain and len(choices) > 1 else choices[0]
        kept = {**merged, **kept}
    if kept.get("default", ...) is None or isinstance(kept.get("default"), dict):
        del kept["default"]
    for key in ("properties", "patternProperties"):
        if key in kept:
            kept[key] = {name: _tidy(inner) for name, inner in kept[key].items()}
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _tidy(kept[key])
    return kept
