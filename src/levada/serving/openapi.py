"""The OpenAPI description of predictions, from the declaration."""

from __future__ import annotations

from typing import Any, Final

from levada.event import MAX_EVENT_ID
from levada.http.problem import MEDIA_TYPE
from levada.http.request import JSON, MAX_BATCH_KEY
from levada.pipeline import Field, Pipeline
from levada.serving.forms import MAX_INSTANCES

_TYPES: Final = {"double": "number", "long": "integer", "boolean": "boolean", "string": "string"}
_INT64: Final = {"minimum": -(2**63), "maximum": 2**63 - 1}
_MEANINGS: Final = {
    400: "The body is not JSON",
    401: "No known API key",
    403: "The API key is for other models",
    404: "Another model or version",
    413: "The body is too large",
    415: "The body is not application/json",
    422: "A feature is missing, unknown, of another type or not finite; errors name it",
    503: "No verified model is loaded yet, or too many requests at once",
}
_ERROR: Final = {
    "type": "object",
    "properties": {
        "instance": {"type": "integer"},
        "field": {"type": "string"},
        "rule": {"type": "string"},
        "message": {"type": "string"},
    },
    "required": ["field", "rule", "message"],
}
_PROBLEM: Final = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": _ERROR},
    },
    "required": ["type", "title", "status", "detail"],
}


def with_predictions(document: dict[str, Any], pipeline: Pipeline, *, secured: bool, kept: bool) -> dict[str, Any]:
    """A description with the operations that ask for predictions added.

    Args:
        document: what there is without them.
        pipeline: the declaration.
        secured: whether they need an API key.
        kept: whether predictions are kept under event ids.
    """
    operations = {
        "/predict": _operation(
            "predict", f"Predict {pipeline.model.label if pipeline.model else 'the label'} from raw features",
            _request(pipeline), _answer(pipeline), [_PROBABILITIES], {404}, secured,
        )
    }  # fmt: skip
    name = {"name": "name", "in": "path", "required": True, "schema": {"const": pipeline.name}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    for path, parameters in (("", [name]), ("/versions/{version}", [name, version])):
        operations[f"/v2/models/{{name}}{path}/infer"] = _operation(
            "infer_version" if path else "infer", "Predict, by the Open Inference Protocol",
            _tensors(pipeline), _TENSORS_BACK, parameters, set(), secured,
        )  # fmt: skip
    if kept:
        for operation in operations.values():
            operation["parameters"] = [*operation["parameters"], _KEY]
            operation["responses"]["200"]["headers"]["levada-event-id"] = {"schema": {"type": "string"}}
    document["paths"] |= {path: {"post": operation} for path, operation in operations.items()}
    if secured:
        document.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


_PROBABILITIES: Final = {
    "name": "probabilities", "in": "query", "schema": {"type": "string", "enum": ["true", "false"]},
    "description": "Whether the probability of each label is wanted, too",
}  # fmt: skip

_KEY: Final = {
    "name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "pattern": f"^[!-~]{{1,{MAX_EVENT_ID}}}$"},
    "description": "The event id under which the prediction is kept. Those of several rows get it with a hyphen and "
    f"the number of the row, from 1; then it may have {MAX_BATCH_KEY} characters.",
}  # fmt: skip


def _operation(
    operation_id: str,
    summary: str,
    request: dict[str, Any],
    answer: dict[str, Any],
    parameters: list[dict[str, Any]],
    without: set[int],
    secured: bool,
) -> dict[str, Any]:
    never = without if secured else without | {401, 403}
    headers = {name: {"schema": {"type": "string"}} for name in ("levada-model", "levada-model-version")}
    refusals = {
        str(code): {"description": text, "content": {MEDIA_TYPE.decode(): {"schema": _PROBLEM}}}
        for code, text in _MEANINGS.items()
        if code not in never
    }
    good = {"description": "Predicted", "headers": headers, "content": {JSON.decode(): {"schema": answer}}}
    return {
        "operationId": operation_id,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": {JSON.decode(): {"schema": request}}},
        "responses": {"200": good, **refusals},
        **({"security": [{"key": []}]} if secured else {}),
    }


def _schema(field: Field) -> dict[str, Any]:
    kind = _TYPES[field.type]
    schema: dict[str, Any] = {"type": kind if field.required else [kind, "null"]}
    return schema | (_INT64 if field.type == "long" else {})


def _request(pipeline: Pipeline) -> dict[str, Any]:
    fields = {name: pipeline.fields[name] for name in pipeline.features}
    instance = {
        "type": "object",
        "properties": {name: _schema(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": False,
    }
    row = {
        "type": "array",
        "description": f"The values of {', '.join(fields)}, in this order",
        "prefixItems": [_schema(field) for field in fields.values()],
        "minItems": len(fields),
        "maxItems": len(fields),
    }
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {name: {"type": "array", "minItems": 1, "maxItems": MAX_INSTANCES, "items": items}},
                "required": [name],
                "additionalProperties": False,
            }
            for name, items in (("instances", instance), ("inputs", row))
        ]
    }


def _answer(pipeline: Pipeline) -> dict[str, Any]:
    model = {"type": "object", "properties": {"name": {"type": "string"}, "version": {"type": "string"}}}
    label = {"type": _TYPES[pipeline.fields[pipeline.model.label].type]} if pipeline.model is not None else {}
    scores = {"type": "object", "additionalProperties": {"type": "number"}}
    prediction = {
        "type": "object",
        "description": "The label of a classification, or the value of a regression",
        "properties": {"label": label, "scores": scores, "value": {"type": "number"}},
        "anyOf": [{"required": ["label"]}, {"required": ["value"]}],
    }
    return {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": prediction}, "model": model},
        "required": ["predictions", "model"],
    }


def _tensors(pipeline: Pipeline) -> dict[str, Any]:
    datatypes = {"double": "FP64", "long": "INT64", "boolean": "BOOL", "string": "BYTES"}
    described = ", ".join(f"{name} ({datatypes[pipeline.fields[name].type]})" for name in pipeline.features)
    tensor = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
            "datatype": {"type": "string"},
            "data": {"type": "array"},
        },
        "required": ["name", "shape", "datatype", "data"],
    }
    return {
        "type": "object",
        "description": f"One tensor of shape [n, 1] a feature: {described}",
        "properties": {"id": {"type": "string"}, "inputs": {"type": "array", "minItems": 1, "items": tensor}},
        "required": ["inputs"],
    }


_TENSORS_BACK: Final = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["model_name", "model_version", "outputs"],
}
