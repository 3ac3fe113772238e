"""Digests of sensitive values: what they are, what they cost, and that the clear value is nowhere."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import extract_parameters
from argon2.low_level import Type, verify_secret

from levada.config import CollectorSettings, ConfigError, Settings
from levada.ingest.collector import Collector
from levada.ingest.seal import BusyError, Sealer, load_pepper
from levada.pipeline import PipelineError, parse_pipeline

from .collecting import API_KEY, Collecting
from .conftest import PEPPER, PIN, PIPELINES
from .kafka import MockKafka

KEY = {"Authorization": "Bearer k-all"}
SEALED = parse_pipeline(PIPELINES["sealed"], "sealed")
STATED_SECONDS = 600
PINS = 10_000


def keyed(*parts: str) -> bytes:
    return hmac.digest(PEPPER.encode(), "/".join(parts).encode(), hashlib.sha256)


def sealer(**settings: Any) -> Sealer:
    cheap = {"argon2_memory_kib": 64, "argon2_passes": 1}
    return Sealer(CollectorSettings(**{**cheap, **settings}), PEPPER.encode)


def test_only_digests_reach_kafka(client: httpx.Client, kafka: MockKafka) -> None:
    event = {"user": "ada lovelace", "pin": "4711", "when": "2026-01-31T12:00:00.000+01:00", "note": None}
    for _ in range(2):
        assert client.post("/v1/sealed/events", headers=KEY, json=event).status_code == 202
    first, second = kafka.messages("sealed")
    one, two = json.loads(first.value()), json.loads(second.value())
    assert one["user"] == two["user"] == keyed("sealed", "user", "ada lovelace").hex()
    assert first.key() == second.key() == one["user"].encode()
    assert one["pin"] != two["pin"]  # a salt of its own each
    assert one["pin"].startswith("$argon2id$v=19$m=64,t=1,p=1$")
    inner = hmac.digest(hmac.digest(PEPPER.encode(), b"argon2id", "sha256"), b"sealed/pin/4711", "sha256")
    assert verify_secret(one["pin"].encode(), inner, Type.ID)
    assert {name: one[name] for name in ("when", "note")} == {name: event[name] for name in ("when", "note")}
    for message in (first, second):
        everything = repr((message.value(), message.key(), message.headers())).encode()
        assert b"4711" not in message.value().replace(one["pin"].encode(), b"").replace(two["pin"].encode(), b"")
        assert b"ada lovelace" not in everything  # its space is in no digest


def test_one_value_has_another_digest_in_another_place(client: httpx.Client, kafka: MockKafka) -> None:
    event = {"user": "same", "pin": "0815", "note": "same"}
    client.post("/v1/sealed/events", headers=KEY, json=event)
    value = json.loads(kafka.messages("sealed")[-1].value())
    assert len({value["user"], value["note"], keyed("other", "user", "same").hex()}) == 3


@pytest.mark.parametrize(
    "event", [{"user": "ada", "pin": "47a1"}, {"user": "ada", "pin": 4711}, {"pin": ["4711"], "n": "4711"}]
)
def test_a_refusal_names_field_and_rule_only(client: httpx.Client, event: dict[str, Any]) -> None:
    answer = client.post("/v1/sealed/events", headers=KEY, json=event)
    assert answer.status_code == 422
    assert str(event["pin"]) not in answer.text
    assert "4711" not in answer.text
    assert "pin" in [error["field"] for error in answer.json()["errors"]]


@pytest.mark.row(3, process=True, part="topic, log, metrics and answers of the collector")
def test_the_clear_pin_is_nowhere(tmp_path: Path, kafka: MockKafka) -> None:
    pepper = tmp_path / "pepper"
    pepper.write_text(PEPPER)
    pins = [f"{number:04d}" for number in range(0, PINS, 2500)]
    # Texts that nothing else can hold: a PIN is four digits, and so are many other things.
    entry = {
        "fields": {
            "user": {"type": "string"},
            "pin": {"type": "string", "sensitive": "argon2id", "rule": "pin LIKE 'pin-%'"},
        }
    }
    kafka.make_topic("nowhere")
    settings = {"ARGON2_PASSES": "1", "ARGON2_MEMORY_KIB": "64", "PEPPER_FILE": str(pepper)}
    collecting = Collecting(
        tmp_path, kafka.bootstrap, {"nowhere": entry}, LEVADA_LOG_LEVEL="DEBUG",
        **{f"LEVADA_COLLECTOR__{name}": value for name, value in settings.items()},
    )  # fmt: skip
    answers = []
    with httpx.Client(base_url=collecting.url, headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        for pin in pins:
            for event in (
                {"user": "u", "pin": f"pin-{pin}"},
                {"user": 1, "pin": f"pin-{pin}"},
                {"user": "u", "pin": f"no-pin-{pin}"},
            ):
                answers.append(client.post("/v1/nowhere/events", json=event))
            broken = b'{"user": "u", "pin": "pin-%s"' % pin.encode()
            answers.append(
                client.post("/v1/nowhere/events", content=broken, headers={"Content-Type": "application/json"})
            )
            lines = f'{{"user": "u", "pin": "pin-{pin}"}}\n{{"pin": "pin-{pin}"}}\n'
            answers.append(
                client.post("/v1/nowhere/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
            )
    assert sorted({answer.status_code for answer in answers}) == [202, 207, 400, 422]
    metrics = collecting.metrics()
    collecting.stop()
    messages = kafka.messages("nowhere")
    assert len(messages) == 2 * len(pins)
    places = {
        "answers": "".join(answer.text + str(answer.headers) for answer in answers),
        "metrics": metrics,
        "log": collecting.log.read_text(),
        "topic": "".join(repr((m.value(), m.key(), m.headers())) for m in messages),
    }
    for place, text in places.items():
        assert text
        assert "pin-0" not in text.replace("pin-%", ""), place
        assert "pin-2" not in text, place


@pytest.mark.row(4, process=True, part="the cost of one guess, at the parameters that are the default")
def test_guessing_a_pin_takes_longer_than_stated(capsys: pytest.CaptureFixture[str]) -> None:
    defaults = CollectorSettings()
    fields = {"fields": {"pin": {**PIN, "sensitive": "argon2id"}}}
    pipeline, expensive = parse_pipeline(fields, "p"), Sealer(defaults, PEPPER.encode)
    digest = asyncio.run(expensive.seal(pipeline, {"pin": "0000"}))["pin"]
    other = asyncio.run(expensive.seal(pipeline, {"pin": "0000"}))["pin"]
    assert digest != other
    parameters = extract_parameters(digest)
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (32_768, 8, 1)
    inner = hmac.digest(hmac.digest(PEPPER.encode(), b"argon2id", "sha256"), b"p/pin/0000", "sha256")
    spent = []
    for _ in range(3):
        begin = time.thread_time()
        verify_secret(digest.encode(), inner, Type.ID)
        spent.append(time.thread_time() - begin)
    half = PINS / 2 * min(spent)
    with capsys.disabled():
        print(f"\n  one guess takes {min(spent) * 1000:.0f} ms of one core, half of all PINs {half / 60:.1f} min")
    assert half > STATED_SECONDS
    expensive.close()


def test_the_queue_is_bounded_and_says_when() -> None:
    async def many() -> list[object]:
        slow = sealer(argon2_memory_kib=8192, argon2_passes=4, seal_queue=4)
        event = {"user": "u", "pin": "0000"}
        outcomes = await asyncio.gather(*(slow.seal(SEALED, event) for _ in range(6)), return_exceptions=True)
        await slow.seal(SEALED, event)  # there is room again
        slow.close()
        return list(outcomes)

    outcomes = asyncio.run(many())
    assert [isinstance(outcome, BusyError) for outcome in outcomes] == [False] * 4 + [True] * 2
    assert isinstance(outcomes[4], BusyError)
    assert outcomes[4].retry_after >= 1


def test_an_event_with_more_digests_than_the_queue_has_places_is_taken_alone() -> None:
    fields = {f"pin{number}": {"type": "string", "sensitive": "argon2id"} for number in range(3)}
    many, event = parse_pipeline({"fields": fields}, "many"), dict.fromkeys(fields, "0000")

    async def both() -> list[object]:
        small = sealer(seal_queue=2)
        outcomes = await asyncio.gather(*(small.seal(many, event) for _ in range(2)), return_exceptions=True)
        again = await small.seal(many, event)
        small.close()
        return [*outcomes, again]

    first, second, again = asyncio.run(both())
    assert isinstance(second, BusyError)
    for sealed in (first, again):
        assert isinstance(sealed, dict)
        assert all(value.startswith("$argon2id$") for value in sealed.values())


def test_other_pipelines_do_not_feel_it(tmp_path: Path, kafka: MockKafka) -> None:
    """At the default cost, with the queue full all the time."""
    (tmp_path / "pepper").write_text(PEPPER)
    collecting = Collecting(
        tmp_path, kafka.bootstrap, {name: PIPELINES[name] for name in ("plain", "sealed")},
        LEVADA_COLLECTOR__PEPPER_FILE=str(tmp_path / "pepper"), LEVADA_COLLECTOR__SEAL_QUEUE="4",
    )  # fmt: skip
    for topic in ("plain", "sealed"):
        kafka.make_topic(topic)
    stop, statuses = threading.Event(), set()
    headers = {"Authorization": f"Bearer {API_KEY}"}

    def hash_on() -> None:
        with httpx.Client(base_url=collecting.url, headers=headers, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/v1/sealed/events", json={"user": "u", "pin": "0000"})
                statuses.add(answer.status_code)
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                    stop.wait(0.05)

    with httpx.Client(base_url=collecting.url, headers=headers) as client:

        def p99() -> float:
            taken = sorted(
                client.post("/v1/plain/events", json={"n": 1, "user": "u"}).elapsed.total_seconds() for _ in range(200)
            )
            return taken[198]

        p99()
        alone = p99()
        threads = [threading.Thread(target=hash_on) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        beside = p99()
        stop.set()
        for thread in threads:
            thread.join()
    collecting.stop()
    assert statuses == {202, 429}
    # A hash on the event loop would add at least its own 150 ms.
    assert beside < max(3 * alone, 0.1)


def test_without_a_pepper(settings: Settings, tmp_path: Path) -> None:
    own = settings.collector.model_copy(update={"pepper_file": tmp_path / "none"})
    with pytest.raises(PipelineError, match="pin: a sensitive field needs the pepper"):
        Collector(settings.model_copy(update={"collector": own}))
    (tmp_path / "short").write_text("fifteen letters")
    with pytest.raises(ConfigError, match="has 15 bytes, it must have 16 or more"):
        load_pepper(tmp_path / "short")
