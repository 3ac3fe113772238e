"""The types of a pipeline's fields, as the collector tells them to whoever may post there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx

from levada.ingest.send.client import SendError, hopeless
from levada.pipeline import Field, FieldType, Pipeline

_TYPES: Final[dict[tuple[str, str | None], FieldType]] = {
    ("string", None): "string",
    ("string", "date-time"): "timestamp",
    ("integer", None): "long",
    ("number", None): "double",
    ("boolean", None): "boolean",
}


def fetch(url: Callable[[], str], key: Callable[[], str], name: str) -> Pipeline:
    """The fields of a pipeline with their types, and no more of its declaration.

    Raises:
        SendError: the collector does not answer, or not with the pipeline's description.
    """
    address, headers = url(), {"Authorization": f"Bearer {key()}"}
    try:
        answer = httpx.get(f"{address}/v1/{name}/openapi.json", headers=headers, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SendError(f"no collector answers at {address} ({error}): correct --url, or see levada status") from error
    if answer.status_code != 200:
        raise SendError(hopeless(answer))
    try:
        described = answer.json()["components"]["schemas"][name]
        return Pipeline(name=name, fields={field: _field(described, field) for field in described["properties"]})
    except (KeyError, TypeError, ValueError) as error:
        raise SendError(
            f"what answers at {address} does not tell the fields of pipeline {name}: correct --url, or give the values "
            "file that declares it with -f"
        ) from error


def _field(described: dict[str, Any], name: str) -> Field:
    schema = described["properties"][name]
    kinds = [schema["type"]] if isinstance(schema["type"], str) else [kind for kind in schema["type"] if kind != "null"]
    return Field(type=_TYPES[kinds[0], schema.get("format")], required=name in described["required"])
