"""`observability`: Prometheus."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from levada.values.block import Block, Labels
from levada.values.workload import Exposed, Stored, Workload


class Retention(Block):
    """How long metrics are kept; the older of the two limits wins."""

    time: Annotated[str, Field(pattern=r"^[1-9][0-9]*(m|h|d|w|y)$")]
    """Longest time."""
    size: Annotated[str, Field(pattern=r"^[1-9][0-9]*(KB|MB|GB|TB)$")]
    """Largest size on disk; keep it below the volume's."""


class PrometheusServer(Workload, Stored, Exposed):
    """Scrapes every pod of the release."""

    scrape_interval: Annotated[str, Field(pattern=r"^[1-9][0-9]*(s|m)$")]
    """Time between two readings."""
    retention: Retention
    """How long metrics are kept."""
    extra_args: Labels
    """More command-line flags, {name: value}; an empty value leaves the flag out."""


class Observability(Block):
    """Prometheus, which scrapes every pod of the release."""

    enabled: bool
    """Whether the room is rendered."""
    prometheus: PrometheusServer
    """Scrapes every pod of the release."""
