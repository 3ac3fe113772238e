"""Dead letters are listed once each, shown safely, and replayed to one row each."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message
from typer.testing import CliRunner

from levada.cli.main import app
from levada.stream import dead
from levada.stream import letters as letters_module
from levada.stream.dead import DeadLetterError, DeadLetters
from levada.stream.letters import Letters, LettersError, printable
from levada.stream.source import Source, SourceError, Topic

from .rig import SMALL, Rig, read, run

WHEN = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
"""Time of the events that are replayed; not so far back that they are late."""


def letters_of(rig: Rig) -> Letters:
    assert rig.settings.kafka is not None
    return Letters(rig.settings.kafka, rig.pipeline)


def refused(rig: Rig) -> None:
    """Five good events and five bad ones, of three rules."""
    for number in range(5):
        rig.send({"n": number}, number % 4, event_id=f"good-{number}")
    for number in range(3):
        rig.send({"n": 200_000 + number}, number, event_id=f"high-{number}", event_time=WHEN.isoformat())
    rig.send(b"\x1b[31m{\xff", 1, event_id="raw")
    rig.send(b'{"n":1,"y":2}', 2, event_id="more")


def test_letters_are_listed_newest_first_and_once_each(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(rig)
    with rig.session() as killed:  # its letters are delivered, its offsets are not
        killed.start()
        read(killed, 10)
        killed._dead.flush()
    run(rig, 10)
    assert len(rig.letters()) == 10
    found, more = letters_of(rig).newest(100)
    assert {letter.event_id for letter in found} == {"high-0", "high-1", "high-2", "raw", "more"}
    assert len(found) == 5
    assert not more
    assert [letter.at for letter in found] == sorted((letter.at for letter in found), reverse=True)
    assert len(letters_of(rig).newest(2)[0]) == 2
    assert letters_of(rig).newest(2)[1]
    assert [letter.event_id for letter in letters_of(rig).newest(9, rule="unknown")[0]] == ["more"]


def test_a_letter_is_shown_with_bytes_that_a_terminal_bears(rig: Rig) -> None:
    refused(rig)
    run(rig, 10)
    place = next(letter.place for letter in letters_of(rig).newest(9)[0] if letter.event_id == "raw")
    letter = letters_of(rig).at(place)
    assert letter.value == b"\x1b[31m{\xff"
    assert printable(letter.value) == "\\x1b[31m{\\xff"
    assert printable("é漢\n") == "é漢\\n"
    assert printable(b"x" * 100_001).endswith("x… (1 more characters)")
    with pytest.raises(LettersError, match="holds no letter of 9/9"):
        letters_of(rig).at("9/9")


def test_a_replayed_event_is_one_row_with_its_own_id_and_time(rig: Rig) -> None:
    refused(rig)
    run(rig, 10)
    rig.declare({**SMALL, "fields": {**SMALL["fields"], "n": {"type": "long"}}})  # the rule is mended
    assert letters_of(rig).replay(rule="n BETWEEN 0 AND 100000") == (3, 0)
    assert letters_of(rig).replay(rule="n BETWEEN 0 AND 100000") == (0, 0)  # recorded
    assert {letter.event_id for letter in letters_of(rig).newest(9)[0] if letter.replayed} == {
        "high-0",
        "high-1",
        "high-2",
    }
    place = next(letter.place for letter in letters_of(rig).newest(9)[0] if letter.event_id == "high-1")
    assert letters_of(rig).replay(place=place) == (1, 0)  # by its place again: still one row
    run(rig, 4)
    assert rig.ids() == {f"good-{n}": 1 for n in range(5)} | {f"high-{n}": 1 for n in range(3)}
    high = [row for row in rig.rows() if row["_event_id"].startswith("high")]
    assert {row["_event_time"].isoformat() for row in high} == {WHEN.isoformat()}
    assert all(row["_partition"] == int(row["_event_id"][-1]) for row in high)


def test_large_letters_are_not_all_held_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters_module, "_HELD_BYTES", 30)
    refused(rig)
    run(rig, 10)
    held, settled = [], letters_module._Sender.flush

    def flush(sender: Any) -> None:
        held.append(sum(len(letter.value or b"") for letter in sender._held))
        settled(sender)

    monkeypatch.setattr(letters_module._Sender, "flush", flush)
    assert letters_of(rig).replay() == (5, 0)
    assert len(held) == 2
    assert max(held) < 30 + len(b'{"n":200000}')


def test_what_is_still_wrong_comes_back_as_a_letter(rig: Rig) -> None:
    refused(rig)
    run(rig, 10)
    assert letters_of(rig).replay() == (5, 0)
    run(rig, 5)
    found, _ = letters_of(rig).newest(100)
    assert sorted(letter.event_id for letter in found) == sorted(["high-0", "high-1", "high-2", "raw", "more"] * 2)
    assert letters_of(rig).replay() == (5, 0)  # of the second refusal, not of the first
    with pytest.raises(LettersError, match="no letter of 7/7"):
        letters_of(rig).replay(place="7/7")


def test_a_letter_of_an_earlier_topic_is_told_from_one_of_the_topic_as_it_is_now(rig: Rig) -> None:
    """Both events were at one partition and offset, of two topics that had one name after another."""
    rig.send({"n": 200_000}, 0, event_id="before")
    run(rig, 1)
    (now,) = letters_of(rig).newest(9)[0]
    older = dict(now.headers) | {"topic-id": b"topic-0", "event-id": b"older"}
    rig._producer.produce(rig.pipeline.dead_topic, now.value, headers=list(older.items()))
    rig._producer.flush(10)
    found, _ = letters_of(rig).newest(9)
    assert {(letter.event_id, letter.place, letter.earlier) for letter in found} == {
        ("before", now.place, False), ("older", now.place, True),
    }  # fmt: skip
    assert letters_of(rig).at(now.place).event_id == "before"
    assert letters_of(rig).replay(place=now.place) == (1, 0)
    assert letters_of(rig).replay() == (1, 1)  # the older one
    assert letters_of(rig).replay() == (0, 0)
    rig.topic = Topic("topic-2", rig.topic.partitions)
    assert letters_of(rig).replay(place=now.place) == (1, 1)


def test_a_letter_of_a_partition_that_an_earlier_topic_had_goes_where_its_key_goes_now(rig: Rig) -> None:
    rig.send({"n": 200_000}, 0, event_id="before")
    run(rig, 1)
    (now,) = letters_of(rig).newest(9)[0]
    older = dict(now.headers) | {"topic-id": b"topic-0", "event-id": b"older", "partition": b"77"}
    rig._producer.produce(rig.pipeline.dead_topic, now.value, key="k", headers=list(older.items()))
    rig._producer.flush(10)
    rig.declare({**SMALL, "fields": {**SMALL["fields"], "n": {"type": "long"}}})
    assert letters_of(rig).replay(place="77/0") == (1, 1)
    run(rig, 1)
    assert rig.ids() == {"older": 1}


def test_letters_can_be_seen_while_there_is_no_topic(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(rig)
    run(rig, 10)

    def none(_: Source) -> Topic:
        raise SourceError("topic p does not exist: run levada topics apply")

    monkeypatch.setattr(Source, "topic", none)
    found, _ = letters_of(rig).newest(9)
    assert [letter.earlier for letter in found] == [False] * 5
    with pytest.raises(SourceError, match="does not exist"):
        letters_of(rig).replay()


def test_an_event_without_a_time_keeps_when_kafka_got_it(rig: Rig) -> None:
    rig.send({"n": 200_000}, 0, event_id="plain")
    run(rig, 1)
    (letter,) = letters_of(rig).newest(1)[0]
    arrived = dict(letter.headers)["arrived-at"].decode()
    rig.declare({**SMALL, "fields": {**SMALL["fields"], "n": {"type": "long"}}})
    letters_of(rig).replay()
    run(rig, 1)
    assert rig.rows()[0]["_event_time"].isoformat(timespec="milliseconds") == arrived


def too_large(rig: Rig) -> None:
    """Two events whose letters are too large, by their value and by what is beside it, between others."""
    rig.send({"n": 200_000}, 0, event_id="small", event_time=WHEN.isoformat())
    rig.send(b'{"n":200001,"x":0.' + b"0" * 60_000 + b"1}", 2, event_id="large")
    rig.send({"n": 1}, 2, event_id="stamped", event_time="y" * 60_000)
    rig.send({"n": 1}, 2, event_id="good")


def test_a_letter_that_is_too_large_is_cut_and_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka's limit may be lower than an event and its headers are long: neither a skipped letter nor a halt."""
    monkeypatch.setattr(dead, "MAX_BYTES", 20_000)
    too_large(rig)
    run(rig, 4)
    assert rig.ids() == {"good": 1}
    (small, its), (large, cut), (stamped, bare) = rig.letters()
    assert small.value() == b'{"n":200000}'
    assert dead.TRUNCATED not in its
    assert large.value() == b'{"n":200001,"x":0.' + b"0" * (dead.KEPT_BYTES - 18)
    assert cut[dead.TRUNCATED] == str(60_020)
    place = {"topic": rig.pipeline.name, "topic-id": "topic-1", "partition": "2"}
    assert {**place, "rule": "n BETWEEN 0 AND 100000", "field": "n", "event-id": "large", "offset": "0"}.items() <= (
        cut.items()
    )
    assert stamped.value() == b'{"n":1}'
    assert {**place, "rule": "event-time", "offset": "1", dead.TRUNCATED: "7"}.items() <= bare.items()
    run(rig, 0)
    assert len(rig.letters()) == 3  # nothing is read again


def test_a_letter_that_kafka_refuses_later_is_cut(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic's own limit is known to the broker alone, which refuses a batch with all that is in it."""
    original = DeadLetters._delivered

    def refused(self: DeadLetters, headers: Any, kept: Any, _: KafkaError | None, message: Message) -> None:
        original(self, headers, kept, KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), message)

    monkeypatch.setattr(DeadLetters, "_delivered", refused)
    too_large(rig)
    run(rig, 4)
    found = sorted(
        (headers["event-id"], len(message.value()), headers.get(dead.TRUNCATED, ""), "event-time" in headers)
        for message, headers in rig.letters()
    )
    assert found == [
        ("large", dead.KEPT_BYTES, "60020", False),
        ("large", 60_020, "", False),  # that Kafka in truth took it
        ("small", 12, "", True),
        ("small", 12, "", True),
        ("stamped", 7, "", True),
        ("stamped", 7, "7", False),
    ]


def test_another_refusal_ends_the_session(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "MAX_BYTES", 20_000)
    monkeypatch.setattr(dead, "KEPT_BYTES", 30_000)  # a limit below what a cut letter has
    too_large(rig)
    with pytest.raises(DeadLetterError, match=r"were not taken: .*too large"):
        run(rig, 4)
    monkeypatch.setattr(dead, "KEPT_BYTES", 100)
    run(rig, 4)
    assert rig.ids() == {"good": 1}


def test_a_cut_letter_is_not_replayed_but_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dead, "MAX_BYTES", 20_000)
        too_large(rig)
        run(rig, 4)
    rig.declare({**SMALL, "fields": {**SMALL["fields"], "n": {"type": "long"}}})
    where = rf"topic {rig.pipeline.name} \(topic id topic-1\), partition 2, offset 0, 60020 bytes"
    with pytest.raises(LettersError, match=rf"^0 sent, 1 cannot be: .*only the beginning.*{where}$"):
        letters_of(rig).replay(place="2/0")
    with pytest.raises(LettersError, match=r"^1 sent, 2 cannot be: .*offset [01], .*; .*offset [01], ") as told:
        letters_of(rig).replay()
    assert re.search(where, str(told.value))
    run(rig, 1)
    assert rig.ids() == {"good": 1, "small": 1}
    assert {letter.event_id: letter.replayed for letter in letters_of(rig).newest(9)[0]} == {
        "small": True, "large": False, "stamped": False,
    }  # fmt: skip


def test_commands(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(rig)
    run(rig, 10)
    folder = rig.folder / "pipelines"
    folder.mkdir()
    (folder / f"{rig.pipeline.name}.json").write_text(rig.pipeline.model_dump_json(exclude={"name"}, by_alias=True))
    assert rig.settings.kafka is not None
    monkeypatch.setenv("LEVADA_KAFKA__BOOTSTRAP", rig.settings.kafka.bootstrap)
    monkeypatch.setenv("LEVADA_KAFKA__PROTOCOL", "PLAINTEXT")
    monkeypatch.setenv("LEVADA_PIPELINES", str(folder))
    listed = CliRunner().invoke(app, ["dead", "list", rig.pipeline.name, "--rule", "json"])
    assert listed.exit_code == 0, listed.output
    place = listed.output.split()[0]
    assert "raw" in listed.output
    shown = CliRunner().invoke(app, ["dead", "show", rig.pipeline.name, place])
    assert "rule: json" in shown.output
    assert "\\x1b[31m{\\xff" in shown.output
    assert CliRunner().invoke(app, ["dead", "replay", rig.pipeline.name]).exit_code == 2
    replayed = CliRunner().invoke(app, ["dead", "replay", rig.pipeline.name, place])
    assert replayed.output == f"1 sent to topic {rig.pipeline.name} again\n"
    rig.topic = Topic("topic-2", rig.topic.partitions)
    assert "(of an earlier topic)" in CliRunner().invoke(app, ["dead", "list", rig.pipeline.name]).output
    shown = CliRunner().invoke(app, ["dead", "show", rig.pipeline.name, place])
    assert shown.output.startswith("(of an earlier topic of that name, deleted since)\n")
    replayed = CliRunner().invoke(app, ["dead", "replay", rig.pipeline.name, place])
    assert replayed.output.endswith("again, 1 of them from an earlier topic of that name, deleted since\n")
