"""A real broker with a topic full of events."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .broker import broker, fill
from .peers import LeftOutError

EVENTS = int(os.environ.get("LEVADA_BENCH_EVENTS", "450000"))
TOPIC = "bench"


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The broker's address."""
    try:
        with broker(tmp_path_factory.mktemp("kafka")) as address:
            yield address
    except LeftOutError as error:
        pytest.skip(f"no broker: {error}")


@pytest.fixture(scope="session")
def filled(bootstrap: str) -> str:
    """The address of a broker whose topic has EVENTS events."""
    fill(bootstrap, TOPIC, EVENTS)
    return bootstrap
