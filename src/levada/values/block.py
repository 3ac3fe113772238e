"""What the blocks of the values are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


def _complete_after_merge(schema: dict[str, Any]) -> None:
    """Take `required` away: Helm checks a room that is switched off without the room's defaults."""
    schema.pop("required", None)


class Block(BaseModel):
    """A block of the values; each of its fields has a default in a values.yaml."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        use_attribute_docstrings=True,
        json_schema_extra=_complete_after_merge,
    )


class Entry(BaseModel):
    """An entry that a user adds to a map or a list; what has no default must be given."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True)


def _quantity(examples: list[str]) -> WithJsonSchema:
    pattern = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
    return WithJsonSchema({"type": ["string", "number"], "pattern": pattern, "examples": examples})


Cpu = Annotated[str | float, _quantity(["100m", "2"])]
"""A Kubernetes quantity of processors."""
Bytes = Annotated[str | float, _quantity(["256Mi", "10Gi"])]
"""A Kubernetes quantity of bytes."""

Host = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$")]
"""A host name, or nothing."""
ObjectName = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]
"""The name of a Kubernetes object, or nothing."""
Labels = dict[str, str]
"""Free names, text values."""
Lines = dict[str, str | int | float | bool]
"""Settings of a program in its own words: free names, plain values."""
Switches = dict[str, bool]
"""A set whose members a later file can take out: name → whether it is in."""
Open = dict[str, Any]
"""A block in Kubernetes' own shape, which the API server checks."""
