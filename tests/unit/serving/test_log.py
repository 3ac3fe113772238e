"""Predictions on their way to the lake: which are kept, under which ids, and that nobody waits for them."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Message
from prometheus_client import REGISTRY

from levada.config import KafkaSettings
from levada.http.problem import Problem
from levada.pipeline import PipelineError, load_stream, parse_pipeline
from levada.serving import log as module
from levada.serving import shadow as shadow_module
from levada.serving.forms import MAX_INSTANCES
from levada.serving.loaded import Loaded
from levada.serving.log import DROPPED, LOGGED, PredictionLog
from levada.serving.shadow import DROPPED as SHADOW_DROPPED
from levada.serving.shadow import Shadow
from levada.stream.events import Decoder, Event
from tests.unit.ingest.kafka import MockKafka

from .conftest import DECLARED, FakeMlflow, model_file, regression_file
from .predicting import HEADERS, Process, Running, loaded
from .test_process import until

TOPIC = "things.predictions"
ROW = {"x": 0.5, "n": 1, "note": "seen"}
NOWHERE = KafkaSettings(bootstrap="127.0.0.1:9", protocol="PLAINTEXT")


@pytest.fixture(scope="module")
def broker() -> Iterator[MockKafka]:
    made = MockKafka()
    made.make_topic(TOPIC)
    yield made
    made.kill()


def keeper(kafka: KafkaSettings | MockKafka = NOWHERE, declared: Any = DECLARED, share: float = 1.0) -> PredictionLog:
    if isinstance(kafka, MockKafka):
        kafka = KafkaSettings(bootstrap=kafka.bootstrap, protocol="PLAINTEXT")
    stream = parse_pipeline(declared, "things").predictions
    assert stream is not None
    return PredictionLog(kafka, "things", stream, share)


def told(message: Message) -> tuple[str, dict[str, Any], dict[str, str]]:
    headers = {name: value.decode() for name, value in message.headers() or ()}
    return headers["event-id"], json.loads(message.value() or b""), headers


def dropped(reason: str) -> float:
    return float(DROPPED.labels("things", reason)._value.get())


def acknowledged() -> float:
    return float(LOGGED.labels("things")._value.get())


def answer(log: PredictionLog, model: Loaded, ids: list[tuple[bytes, int]], size: int = 100) -> None:
    rows = [(0.5, 1, "seen")] * sum(count for _, count in ids)
    log.mirror(model, rows, *model.score(rows), ids, size)


def stopped(log: PredictionLog) -> None:
    """Hand over all that waits, as a process that stops does."""
    stop = threading.Event()
    stop.set()
    log.run(stop)


def test_the_derived_stream_has_features_label_version_and_score(tmp_path: Path) -> None:
    pipeline = parse_pipeline({**DECLARED, "key": "note", "lake": {"lateHorizon": "2d"}, "topic": {"partitions": 6},
                               "stream": {"replicas": 3}, "fields": {**DECLARED["fields"], "note": {"type": "string"}},
                               }, "some-things")  # fmt: skip
    stream = pipeline.predictions
    assert stream is not None
    assert pipeline.streams == (pipeline, stream)
    assert stream.types == {
        "x": "double", "n": "long", "kind": "string", "model_version": "string", "model_score": "double"
    }  # fmt: skip
    assert (stream.topic_name, stream.dead_topic) == ("some-things.predictions", "some-things.predictions.dead")
    assert stream.table == ("predictions", "some_things")
    assert (stream.topic.partitions, stream.stream.replicas, stream.lake.late_horizon) == (6, 1, "2d")
    assert (stream.key, stream.model, stream.features) == (None, None, ())
    number = parse_pipeline(
        {"fields": {"x": {"type": "double"}, "y": {"type": "long"}}, "model": {"label": "y", "gate": {"metric": "rmse",
         "floor": 1}}}, "p",
    ).predictions  # fmt: skip
    assert number is not None
    assert number.types["y"] == "double"  # what a regression says of whole numbers
    (tmp_path / "p.json").write_text(json.dumps(DECLARED))
    assert load_stream(tmp_path, "p.predictions").table == ("predictions", "p")
    assert load_stream(tmp_path, "p").table == ("events", "p")
    for off in ({"serving": {"logged": 0}}, {"serving": {"enabled": False}}, {"model": None}):
        (tmp_path / "p.json").write_text(json.dumps({**DECLARED, **off}))
        with pytest.raises(PipelineError, match=r"pipeline p: no prediction is kept: .* serving\.logged above 0"):
            load_stream(tmp_path, "p.predictions")


def test_a_field_with_the_name_of_a_column_of_ours_is_refused() -> None:
    fields = {**DECLARED["fields"], "model_version": {"type": "string"}}
    with pytest.raises(PipelineError, match=r"fields\.model_version: logged predictions have a column of this name"):
        parse_pipeline({**DECLARED, "fields": fields}, "things")
    parse_pipeline({**DECLARED, "fields": fields, "serving": {"logged": 0}}, "things")


def test_a_request_is_named_by_its_key_or_by_us() -> None:
    log = keeper()
    assert log.name({b"idempotency-key": b"order-7"}, 1) == b"order-7"
    assert log.name({b"idempotency-key": b"k" * 50}, 3) == b"k" * 50
    first, second = log.name({}, 1), log.name({}, 3)
    assert first != second
    assert len(first) < 50
    for key, rows in ((b"k" * 65, 1), (b"k" * 51, 2), (b"with space", 1), (b"", 1)):
        with pytest.raises(Problem, match="Idempotency-Key must be 1 to") as refused:
            log.name({b"idempotency-key": key}, rows)
        assert refused.value.status == 400


def test_a_share_of_the_requests_is_kept() -> None:
    log = keeper(share=0.25)
    kept = sum(log.name({b"idempotency-key": b"k"}, 1) == b"k" for _ in range(4000))
    assert 850 < kept < 1150


def test_what_is_kept_are_events_that_the_sink_takes(broker: MockKafka, pipeline: Any) -> None:
    log, model = keeper(broker), loaded(model_file(), "3")
    answer(log, model, [(b"one", 1), (b"", 2), (b"many", 2)])
    rows = [(1.5, 2**60, None)]
    log.mirror(model, rows, *model.score(rows), [(b"last", 1)], 100)
    stopped(log)
    messages = [m for m in broker.messages(TOPIC) if told(m)[0] in ("one", "many-1", "many-2", "last")]
    found = {told(message)[0]: told(message) for message in messages}
    assert sorted(found) == ["last", "many-1", "many-2", "one"]
    score = pytest.approx(0.8175744761936437)
    assert found["one"][1] == {**ROW, "kind": "high", "model_version": "3", "model_score": score}
    assert found["one"][2].keys() == {"event-id", "event-time", "pipeline", "schema"}
    assert (found["one"][2]["pipeline"], found["one"][2]["schema"]) == (TOPIC, "1")
    decoded = [Decoder(pipeline.predictions, "t").exact(m, module.datetime.now(module.UTC)) for m in messages]
    assert all(isinstance(event, Event) for event in decoded)
    (last,) = (event.row for event in decoded if isinstance(event, Event) and event.id == "last")
    assert (last["n"], last["note"], last["kind"]) == (2**60, None, "high")


def test_a_regression_has_a_value_and_no_score(broker: MockKafka) -> None:
    declared = {"fields": {"x": {"type": "double"}, "y": {"type": "double"}},
                "model": {"label": "y", "gate": {"metric": "rmse", "floor": 1}}}  # fmt: skip
    log, model = keeper(broker, declared), loaded(regression_file(), "1")
    log.mirror(model, [(1.5,)], *model.score([(1.5,)]), [(b"number", 1)], 100)
    stopped(log)
    (value,) = (told(message)[1] for message in broker.messages(TOPIC) if told(message)[0] == "number")
    assert value == {"x": 1.5, "y": 3.0, "model_version": "1", "model_score": None}


def test_a_version_older_than_the_declaration_is_kept_as_far_as_it_has_columns(broker: MockKafka) -> None:
    fields = {"x": {"type": "double"}, "n": {"type": "double"}, "new": {"type": "long"}, "kind": {"type": "string"}}
    log = keeper(broker, {"fields": fields, "model": {"label": "kind"}})
    answer(log, loaded(model_file(), "1"), [(b"older", 1)])
    stopped(log)
    (value,) = (told(message)[1] for message in broker.messages(TOPIC) if told(message)[0] == "older")
    assert value.keys() == {"x", "kind", "model_version", "model_score"}
    before = dropped("declaration")
    other = keeper(
        broker, {"fields": {"x": {"type": "double"}, "sort": {"type": "string"}}, "model": {"label": "sort"}}
    )
    answer(other, loaded(model_file(), "1"), [(b"other", 2)])
    stopped(other)
    assert dropped("declaration") == before + 2


def test_a_full_queue_drops_and_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ROWS", 10)
    log, model = keeper(), loaded(model_file(), "1")
    before = dropped("busy")
    for _ in range(5):
        answer(log, model, [(b"a", 4)])
    assert dropped("busy") == before + 8
    assert len(log._queue) == 3


def test_the_largest_request_is_kept_while_others_wait() -> None:
    log, model = keeper(), loaded(model_file(), "1")
    answer(log, model, [(b"small", 1)] * 1_999)
    answer(log, model, [(b"large", MAX_INSTANCES)])
    assert len(log._queue) == 2


def test_a_queue_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch, broker: MockKafka) -> None:
    model = loaded(model_file(), "1")
    log = keeper(broker)
    shadow = Shadow("things", lambda: model)
    rows = [(0.5, 1, "x" * 1_000)]
    before, shadowed = dropped("busy"), SHADOW_DROPPED.labels("things", "busy")._value.get()
    for bound, queue, mirror in (
        (module._MAX_BYTES, log._queue, log.mirror),
        (shadow_module._MAX_BYTES, shadow._queue, shadow.mirror),
    ):
        for size in (bound // 2, bound // 2, 1):
            mirror(model, rows, *model.score(rows), [(b"large", 1)], size)
        assert len(queue) == 2
    assert dropped("busy") == before + 1
    assert SHADOW_DROPPED.labels("things", "busy")._value.get() == shadowed + 1
    shadow.compare()
    stopped(log)
    for mirror in (log.mirror, shadow.mirror):  # there is room again
        mirror(model, rows, *model.score(rows), [(b"large", 1)], 1_000_000)
    assert (len(log._queue), len(shadow._queue)) == (1, 1)


@pytest.mark.parametrize("size", [1, 1900])  # by the short way, and by ASGI on a thread
def test_the_log_is_told_how_large_a_request_was(pipeline: Any, size: int) -> None:
    log = keeper()
    running = Running(pipeline, name=log.name, mirror=log.mirror)
    running.champion = loaded(model_file(), "1")
    body = json.dumps({"instances": [ROW] * size})
    for _ in range(2):
        assert running.ask(body)[0] == 200
    running.close()
    assert log._bytes_mirrored == 2 * len(body)


def test_what_kafka_did_not_acknowledge_is_counted_as_dropped_only(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MockKafka()
    broker.make_topic(TOPIC)
    kept, lost = acknowledged(), dropped("kafka")
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 2)
    log, model, stop = keeper(broker), loaded(model_file(), "1"), threading.Event()
    thread = threading.Thread(target=log.run, args=(stop,), daemon=True)
    thread.start()
    answer(log, model, [(b"several", 120)])
    until(lambda: acknowledged() == kept + 120)
    broker.hold()
    answer(log, model, [(b"timed-out", 7)])
    until(lambda: dropped("kafka") == lost + 7, 20)
    assert acknowledged() == kept + 120
    monkeypatch.setattr(module, "_FLUSH_SECONDS", 0.2)
    answer(log, model, [(b"left", 5)])
    stop.set()
    thread.join(20)
    broker.go_on()
    broker.kill()
    assert (acknowledged(), dropped("kafka")) == (kept + 120, lost + 12)


def test_what_cannot_be_written_does_not_stop_the_rest(broker: MockKafka) -> None:
    log, model, stop = keeper(broker), loaded(model_file(), "1"), threading.Event()
    before = dropped("error")
    thread = threading.Thread(target=log.run, args=(stop,), daemon=True)
    thread.start()
    log.mirror(model, [(0.5, 1, object())] * 3, *model.score([(0.5, 1, "")] * 3), [(b"never", 3)], 100)
    answer(log, model, [(b"after-it", 1)])
    until(lambda: "after-it" in {told(message)[0] for message in broker.messages(TOPIC)})
    stop.set()
    thread.join(20)
    assert dropped("error") == before + 3


def test_a_comparison_that_breaks_off_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    shadow, looks, stop = Shadow("things", lambda: None), 0, threading.Event()

    def compare() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            stop.set()
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(shadow, "compare", compare)
    monkeypatch.setattr(shadow_module, "_PAUSE_SECONDS", 0.01)
    shadow.run(stop)
    assert looks == 3


def test_the_metrics_of_a_challenger_go_with_it() -> None:
    def shown(version: str) -> list[str]:
        return [
            sample.name
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name.startswith("levada_shadow_") and sample.labels.get("version") == version
        ]

    champion, challenger = loaded(model_file(), "51"), loaded(model_file(), "52")
    current: list[Loaded | None] = [challenger]
    shadow = Shadow("things", lambda: current[0])
    rows = [(0.5, 1, "seen")]
    shadow.mirror(champion, rows, *champion.score(rows), [(b"asked", 1)], 100)
    shadow.compare()
    assert "levada_shadow_agreement" in shown("52")
    shadow.compare()
    assert "levada_shadow_agreement" in shown("52")
    current[0] = None  # it was promoted
    shadow.compare()
    assert shown("52") == []


def test_it_goes_on_when_what_it_logs_in_with_comes_late(
    broker: MockKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.05)
    log = keeper(broker)
    good = log._kafka
    log._kafka = KafkaSettings(bootstrap="127.0.0.1:9", credentials=tmp_path)  # without a password
    stop = threading.Event()
    thread = threading.Thread(target=log.run, args=(stop,), daemon=True)
    thread.start()
    answer(log, loaded(model_file(), "1"), [(b"patient", 1)])
    time.sleep(0.3)
    log._kafka = good
    until(lambda: "patient" in {told(message)[0] for message in broker.messages(TOPIC)})
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_what_a_challenger_says_is_kept_beside_it(broker: MockKafka) -> None:
    log = keeper(broker)
    champion, challenger = loaded(model_file(), "1"), loaded(model_file(("high", "low")), "2")
    shadow = Shadow("things", lambda: challenger, log.shadow)
    rows = [(0.5, 1, "seen")] * 4
    shadow.mirror(champion, rows, *champion.score(rows), [(b"asked", 1), (b"several", 2), (b"k" * 60, 1)], 100)
    shadow.compare()
    stopped(log)
    said = {told(message)[0]: told(message)[1] for message in broker.messages(TOPIC)}
    found = {key: value for key, value in said.items() if value["model_version"] == "2"}
    # The last would be longer than an event id may be.
    assert found.keys() == {"asked/shadow", "several-1/shadow", "several-2/shadow"}
    assert found["asked/shadow"]["kind"] == "low"


@pytest.mark.parametrize("size", [1, 1900])  # by the short way, and by ASGI on a thread
def test_the_answer_tells_the_id(broker: MockKafka, pipeline: Any, size: int) -> None:
    log = keeper(broker)
    running = Running(pipeline, name=log.name, mirror=log.mirror)
    running.champion = loaded(model_file(), "1")
    body = {"instances": [ROW] * size}
    _, _, headers = running.ask(body, Idempotency_Key="given")
    assert headers["levada-event-id"] == "given"
    _, _, headers = running.ask(body)
    assert "." in headers["levada-event-id"]
    status, refusal, headers = running.ask(body, Idempotency_Key="not one")
    assert (status, refusal["errors"][0]["field"]) == (400, "Idempotency-Key")
    assert "levada-event-id" not in headers
    described = running.ask(None, "/openapi.json", "GET")[1]["paths"]["/predict"]["post"]
    assert [each["name"] for each in described["parameters"]] == ["probabilities", "Idempotency-Key"]
    assert "levada-event-id" in described["responses"]["200"]["headers"]
    running.close()
    assert sum(len(item[2]) for item in log._queue) == 2 * size


def test_without_a_log_no_id_is_told(pipeline: Any) -> None:
    running = Running(pipeline)
    running.champion = loaded(model_file(), "1")
    status, _, headers = running.ask({"instances": [ROW]}, Idempotency_Key="any thing")
    assert "Idempotency-Key" not in json.dumps(running.ask(None, "/openapi.json", "GET")[1])
    running.close()
    assert (status, headers.get("levada-event-id")) == (200, None)


def settings(broker: MockKafka) -> dict[str, str]:
    return {"LEVADA_KAFKA__BOOTSTRAP": broker.bootstrap, "LEVADA_KAFKA__PROTOCOL": "PLAINTEXT"}


def test_the_process_keeps_what_it_answered_before_it_stops(
    tmp_path: Path, mlflow: FakeMlflow, broker: MockKafka
) -> None:
    mlflow.promote("1", model_file())
    process = Process(tmp_path, mlflow.uri, **settings(broker))
    ids = set()
    with httpx.Client() as client:
        for _ in range(300):
            answered = client.post(f"{process.url}/predict", json={"instances": [ROW]}, headers=HEADERS)
            ids.add(answered.headers["levada-event-id"])
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(20) == 0
    assert len(ids) == 300
    assert ids <= {told(message)[0] for message in broker.messages(TOPIC)}


@pytest.mark.row(51)
def test_predictions_go_on_while_kafka_is_away_and_are_kept_when_it_is_back(tmp_path: Path, mlflow: FakeMlflow) -> None:
    broker = MockKafka()
    broker.make_topic(TOPIC)
    broker.hold()
    mlflow.promote("1", model_file())
    process = Process(tmp_path, mlflow.uri, **settings(broker))
    slowest = 0.0
    with httpx.Client() as client:
        for number in range(300):
            begin = time.perf_counter()
            headers = {**HEADERS, "Idempotency-Key": f"away-{number}"}
            answered = client.post(f"{process.url}/predict", json={"instances": [ROW]}, headers=headers)
            slowest = max(slowest, time.perf_counter() - begin)
            assert answered.status_code == 200
    broker.go_on()
    wanted = {f"away-{number}" for number in range(300)}
    until(lambda: wanted <= {told(message)[0] for message in broker.messages(TOPIC)}, 40)
    process.stop()
    broker.kill()
    print(f"the slowest of 300 answers with Kafka held up took {1000 * slowest:.1f} ms")
    assert slowest < 1
