"""OpenAPI 3.1 of the collector, made from the declarations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlglot
from sqlglot import exp

import levada
from levada.config import CollectorSettings
from levada.pipeline import Field, Pipeline

_INT64: Final = {"minimum": -(2**63), "maximum": 2**63 - 1}
_TYPES: Final[dict[str, dict[str, Any]]] = {
    "string": {"type": "string"},
    "long": {"type": "integer", **_INT64},
    "double": {"type": "number"},
    "boolean": {"type": "boolean"},
    "timestamp": {"type": "string", "format": "date-time"},
}
_REFUSALS: Final = {
    400: "The body is not JSON, or a header is not what it must be.",
    401: "No API key, or one that is not known.",
    403: "The API key is not for this pipeline.",
    404: "There is no such pipeline.",
    408: "The request did not come whole in time.",
    413: "The event, or the batch, is too large.",
    415: "The body is neither JSON nor NDJSON, or is compressed.",
    422: "The event breaks the declaration; each violation names its field.",
    429: "Too many events with sensitive fields at once.",
    431: "The headers are too large.",
    503: "Kafka has not acknowledged the event, or cannot take it now: send it again under the same event id.",
}
_RETRIED: Final = (429, 503)


def document(pipelines: Sequence[Pipeline], settings: CollectorSettings) -> dict[str, Any]:
    """The interface for these pipelines."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Levada collector",
            "version": levada.__version__,
            "description": "Events go in by HTTP. A 202 means that Kafka has the event; nothing else does.",
        },
        "security": [{"key": []}],
        "paths": {f"/v1/{each.name}/events": {"post": _operation(each, settings)} for each in pipelines},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                **{each.name: _event(each) for each in pipelines},
                "Receipt": _RECEIPT,
                "Receipts": _RECEIPTS,
                "Problem": _PROBLEM,
                "Violation": _VIOLATION,
            },
        },
    }


def _operation(pipeline: Pipeline, settings: CollectorSettings) -> dict[str, Any]:
    event = {"$ref": f"#/components/schemas/{pipeline.name}"}
    many = {"type": "array", "items": event, "minItems": 1, "maxItems": settings.max_bulk_lines}
    return {
        "operationId": f"post-{pipeline.name}",
        "summary": f"Send one event of {pipeline.name}, or many",
        "description": (
            f"One event may have {settings.max_body_bytes} bytes, a batch {settings.max_bulk_bytes} bytes and "
            f"{settings.max_bulk_lines} lines. Only UTF-8 JSON without Content-Encoding is taken."
        ),
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": (
                    "The event id: repeat a request under the same one, and there is one row. The events of a batch "
                    "get it with a hyphen and the number of their line; then it may have 50 characters."
                ),
                "schema": {"type": "string", "pattern": "^[!-~]{1,64}$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"oneOf": [event, many]}},
                "application/x-ndjson": {"schema": {"type": "string", "description": "One event a line."}},
            },
        },
        "responses": {
            "202": {
                "description": "Kafka has the event, or every event of the batch.",
                "content": {"application/json": {"schema": {"oneOf": [_ref("Receipt"), _ref("Receipts")]}}},
            },
            "207": {
                "description": "Some lines of the batch were refused; each has its own receipt.",
                "headers": {"Retry-After": _RETRY_AFTER},
                "content": {"application/json": {"schema": _ref("Receipts")}},
            },
            **{str(status): _refusal(status, text) for status, text in _REFUSALS.items()},
        },
    }


def _refusal(status: int, text: str) -> dict[str, Any]:
    refusal: dict[str, Any] = {
        "description": text,
        "content": {"application/problem+json": {"schema": _ref("Problem")}},
    }
    if status in _RETRIED:
        refusal["headers"] = {"Retry-After": _RETRY_AFTER}
    if status == 401:
        refusal["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return refusal


def _event(pipeline: Pipeline) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _property(name, field, pipeline) for name, field in pipeline.fields.items()},
        "required": [name for name, field in pipeline.fields.items() if field.required],
        "additionalProperties": False,
    }


def _property(name: str, field: Field, pipeline: Pipeline) -> dict[str, Any]:
    schema = dict(_TYPES[field.type])
    told = []
    if field.one_of is not None:
        schema["enum"] = list(field.one_of)
    if field.rule is not None:
        told.append(f"Rule: {field.rule}.")
        schema.update(_from_rule(name, field))
    if field.sensitive is not None:
        told.append(f"Sensitive: kept as {field.sensitive} digest only.")
        schema["writeOnly"] = True
    if name == pipeline.event_time:
        told.append(
            f"When the event happened: at most {pipeline.lake.late_horizon} ago, {pipeline.lake.max_ahead} ahead."
        )
    if not field.required:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"].append(None)
    if told:
        schema["description"] = " ".join(told)
    return schema


def _from_rule(name: str, field: Field) -> dict[str, Any]:
    """A rule in JSON Schema's words, where it has some: a range of the field itself, or a pattern."""
    match sqlglot.parse_one(str(field.rule)):
        case exp.Between(this=exp.Column(name=column), args={"low": low, "high": high}) if column == name:
            bounds = {"minimum": _number(low), "maximum": _number(high)}
            return {word: bound for word, bound in bounds.items() if bound is not None}
        case exp.Anonymous(name="REGEXP", expressions=[exp.Column(name=column), exp.Literal(name=pattern)]):
            return {"pattern": pattern} if column == name else {}
    return {}


def _number(node: exp.Expr) -> float | int | None:
    if isinstance(node, exp.Neg):
        value = _number(node.this)
        return None if value is None else -value
    if not isinstance(node, exp.Literal) or node.is_string:
        return None
    return int(node.this) if node.is_int else float(node.this)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_RETRY_AFTER: Final = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}
_PLACE: Final = {
    "event_id": {"type": "string"},
    "partition": {"type": "integer", "minimum": 0},
    "offset": {
        "type": ["integer", "null"],
        "minimum": 0,
        "description": "Null where Kafka has the event from an earlier attempt, and does not say where.",
    },
    "review": {"const": True, "description": "A screen set the event aside."},
}
_RECEIPT: Final = {
    "type": "object",
    "properties": _PLACE,
    "required": ["event_id", "partition", "offset"],
    "additionalProperties": False,
}
_VIOLATION: Final = {
    "type": "object",
    "properties": {"field": {"type": "string"}, "rule": {"type": "string"}, "message": {"type": "string"}},
    "required": ["field", "rule", "message"],
    "additionalProperties": False,
}
_ERRORS: Final = {"type": "array", "items": {"$ref": "#/components/schemas/Violation"}}
_RECEIPTS: Final = {
    "type": "object",
    "properties": {
        "batch": {"type": "string", "description": "The Idempotency-Key, or what was made instead."},
        "acknowledged": {"type": "integer", "minimum": 0},
        "receipts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "line": {"type": "integer", "minimum": 1},
                    "status": {"enum": [202, 400, 413, 422, 429, 503]},
                    "detail": {"type": "string"},
                    "errors": _ERRORS,
                    **_PLACE,
                },
                "required": ["line", "status", "event_id"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["batch", "acknowledged", "receipts"],
    "additionalProperties": False,
}
_PROBLEM: Final = {
    "type": "object",
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": _ERRORS,
        "event_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "errors"],
    "additionalProperties": False,
}
