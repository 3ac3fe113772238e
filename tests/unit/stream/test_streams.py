"""One process that carries a pipeline's events and its predictions."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest
from confluent_kafka import Producer

from levada import lake
from levada.pipeline import parse_pipeline
from levada.stream.sink import Sink, run_all
from levada.stream.table import FencedError

from .rig import SMALL, Rig

MODELLED = {
    **SMALL,
    "fields": {**SMALL["fields"], "kind": {"type": "string", "oneOf": ["low", "high"]}},  # type: ignore[dict-item]
    "model": {"label": "kind"},
    "stream": {"replicas": 2, "commitEvery": "1s"},
}


def test_both_streams_reach_their_own_tables(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.declare(MODELLED)
    monkeypatch.setattr(lake, "catalog", lambda _: rig.catalog())
    stream = rig.pipeline.predictions
    assert stream is not None
    producer = Producer({"bootstrap.servers": rig.settings.kafka.bootstrap})  # type: ignore[union-attr]
    for topic in (stream.topic_name, stream.dead_topic):
        producer.list_topics(topic, timeout=10)
    rig.send({"n": 1, "x": 0.5, "kind": "low"}, event_id="a")
    said = b'{"n": 1, "x": null, "kind": "neither", "model_version": "3", "model_score": 0.75}'
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for partition in (0, 1):  # the events' second sink would not have the second one
        headers = [("event-id", f"p{partition}"), ("event-time", now)]
        producer.produce(stream.topic_name, said, partition=partition, headers=headers)
    assert producer.flush(10) == 0
    tables = rig.catalog()  # SQLite cannot make its own tables for two at once
    stop = threading.Event()
    sinks = [Sink(rig.settings, each) for each in rig.pipeline.streams]
    running = threading.Thread(target=run_all, args=(sinks, stop))
    running.start()
    deadline = time.monotonic() + 30
    found: list[dict[str, Any]] = []
    while (len(found) < 2 or not tables.table_exists(rig.pipeline.table) or not rig.ids()) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)
        if tables.table_exists(stream.table):
            found = tables.load_table(stream.table).scan().to_arrow().to_pylist()
    stop.set()
    running.join(30)
    assert {(row["_event_id"], row["kind"], row["model_version"], row["model_score"]) for row in found} == {
        (event_id, "neither", "3", 0.75) for event_id in ("p0", "p1")
    }
    assert rig.ids() == {"a": 1}


def test_the_first_that_ends_by_an_error_ends_the_process() -> None:
    ended: list[str] = []

    class Good:
        def run(self, stop: threading.Event) -> None:
            assert stop.wait(20)
            ended.append("good")

    class Fenced:
        def run(self, stop: threading.Event) -> None:
            raise FencedError("another sink has claimed partition 0")

    for sinks in ([Good(), Fenced()], [Fenced(), Good()]):
        ended.clear()
        with pytest.raises(FencedError):
            run_all(cast("list[Sink]", sinks), threading.Event())
        assert ended == ["good"]


def test_predictions_have_one_sink_whatever_the_events_have() -> None:
    stream = parse_pipeline(MODELLED, "p").predictions
    assert stream is not None
    assert (stream.stream.replicas, stream.stream.commit_every) == (1, "1s")
