from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from levada.ingest.send import Options, Progress, Summary, send
from levada.pipeline import parse_pipeline
from tests.unit.ingest.collecting import API_KEY, Collecting
from tests.unit.ingest.kafka import MockKafka

FIELDS = {
    "n": {"type": "long", "rule": "n >= 0"},
    "user": {"type": "string"},
    "note": {"type": "string", "required": False},
}
DECLARED: dict[str, Any] = {name: {"fields": FIELDS} for name in ("free", "big", "other")}
DECLARED["keyed"] = {"key": "user", "fields": FIELDS}
PIPELINES = {name: parse_pipeline(entry, name) for name, entry in DECLARED.items()}


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    kafka = MockKafka()
    for topic in DECLARED:
        kafka.make_topic(topic)
    yield kafka
    kafka.go_on()
    kafka.kill()


@pytest.fixture(scope="module")
def collector(kafka: MockKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collecting]:
    limits = {"LEVADA_COLLECTOR__MAX_BODY_BYTES": "20000", "LEVADA_COLLECTOR__MAX_BULK_BYTES": "400000"}
    collector = Collecting(tmp_path_factory.mktemp("collector"), kafka.bootstrap, DECLARED, **limits)
    yield collector
    collector.stop()


Send = Callable[..., Summary]


@pytest.fixture
def send_file(collector: Collecting) -> Send:
    """Send a file within this process."""

    def start(
        path: Path, pipeline: str = "free", report: Callable[[Progress], None] = lambda _: None, **options: Any
    ) -> Summary:
        key = options.pop("key", API_KEY)
        options.setdefault("patience", 60)
        return send(path, PIPELINES[pipeline], lambda: collector.url, lambda: key, Options(**options), report)

    return start


class Held:
    """Events of a topic since some moment."""

    def __init__(self, kafka: MockKafka, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        self._before = {(m.partition(), m.offset()) for m in kafka.messages(topic)}

    def messages(self) -> list[Any]:
        return [m for m in self._kafka.messages(self._topic) if (m.partition(), m.offset()) not in self._before]

    def ids(self) -> list[str]:
        return [dict(message.headers())["event-id"].decode() for message in self.messages()]


@pytest.fixture
def held(kafka: MockKafka) -> Callable[[str], Held]:
    return lambda topic: Held(kafka, topic)


def write_csv(path: Path, rows: int, note: str = "") -> Path:
    path.write_text("n,user,note\n" + "".join(f"{n},u{n % 97},{note}\n" for n in range(rows)))
    return path


def in_time(condition: Callable[[], bool], seconds: float = 20) -> None:
    ticks = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        ticks.wait(0.02)
    pytest.fail(f"not within {seconds:g} s")
