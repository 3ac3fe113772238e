"""The row that says which version is champion, on a real PostgreSQL, and gates that want to change it at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from levada import evidence
from levada.config import PostgresSettings, Settings
from levada.evidence import Record
from levada.pipeline import Pipeline
from levada.registry import case, tracking
from levada.registry.book import Book
from levada.registry.errors import TrainingError
from levada.registry.generation import Generations
from levada.registry.promote import promote
from levada.registry.train import train

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides

RECORD = Record(
    "promoted", "1", "1", "accuracy", 0.95, None, "a", "ab" * 32, "2026-11-23T08:00:00.000000+00:00", generation=1
)


@pytest.fixture
def generations(postgres: PostgresSettings) -> Iterator[Generations]:
    made = Generations(create_engine(postgres.url(), pool_size=20))
    yield made
    made.close()


@pytest.mark.row(47, part="compare-and-set")
def test_of_twenty_gates_at_once_one_decides(generations: Generations) -> None:
    generations.state("iris", None)
    start = threading.Barrier(20)

    def decide(number: int) -> bool:
        start.wait()
        return generations.move("iris", replace(RECORD, version=str(number), champion=str(number)), "s")

    for generation in range(1, 6):
        with ThreadPoolExecutor(20) as pool:
            assert sum(pool.map(decide, range(20))) == (generation == 1)
    state = generations.state("iris", None)
    assert state.generation == 1
    assert [(each.generation, each.champion) for each in generations.history("iris")] == [(1, state.champion)]


def test_the_tables_may_be_made_by_many_at_once(postgres: PostgresSettings) -> None:
    engines = [create_engine(postgres.url()) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for made in pool.map(Generations, engines):
            made.close()


def test_pipelines_do_not_touch_each_other(generations: Generations) -> None:
    for name in ("iris", "wine"):
        generations.state(name, None)
        assert generations.move(name, RECORD, "s")
    assert generations.state("wine", None).generation == 1


def test_a_row_that_was_lost_or_is_older_than_the_records_begins_where_they_are(generations: Generations) -> None:
    later = replace(RECORD, champion="7", generation=41)
    assert (generations.state("iris", later).generation, generations.state("iris", later).champion) == (41, "7")
    assert not generations.move("iris", RECORD, "s")
    assert generations.state("iris", replace(later, generation=40, champion="6")).champion == "7"
    assert generations.state("iris", replace(later, generation=42, champion="8")).champion == "8"


def test_a_row_that_was_deleted_begins_above_the_history(generations: Generations, postgres: PostgresSettings) -> None:
    generations.state("iris", None)
    for number in (1, 2, 3):
        assert generations.move("iris", replace(RECORD, generation=number), "s")
    with psycopg.connect(postgres.url("postgresql")) as connection:
        connection.execute("DELETE FROM registry.generation")
    state = generations.state("iris", replace(RECORD, generation=2))
    assert (state.generation, state.champion, state.record) == (3, "1", None)
    with psycopg.connect(postgres.url("postgresql")) as connection:  # as it began before that was so
        connection.execute("UPDATE registry.generation SET generation = 0, champion = NULL")
    assert (generations.state("iris", None).generation, generations.state("iris", None).champion) == (3, None)
    assert generations.move("iris", replace(RECORD, generation=4), "s")


def test_a_row_of_the_history_that_no_gate_wrote_is_named(generations: Generations, postgres: PostgresSettings) -> None:
    generations.state("iris", None)
    assert generations.move("iris", RECORD, "s")
    with psycopg.connect(postgres.url("postgresql")) as connection:
        connection.execute("INSERT INTO registry.history SELECT 'iris', 2, '9', now(), '{}', 'x'")
    assert generations.state("iris", RECORD).signature == "s"  # what is in force stays so
    with pytest.raises(TrainingError, match=r"registry\.history has a row of iris, generation 2, .* delete it"):
        generations.move("iris", replace(RECORD, generation=2), "s")
    assert generations.state("iris", RECORD).generation == 1


def test_a_database_that_is_down_is_said_and_nothing_is_decided(tmp_path: Any) -> None:
    for name in ("username", "password"):
        (tmp_path / name).write_text("x")
    nobody = PostgresSettings(host="127.0.0.1", port=1, database="x", credentials=tmp_path)
    with pytest.raises(TrainingError, match="cannot be reached, nothing was decided and the champion stays"):
        Generations(create_engine(nobody.url()))


@pytest.mark.row(48, part="a lost pod and a clock that is set back")
def test_versions_and_decisions_stay_in_order_when_pods_are_lost_and_clocks_set_back(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Yesterday(datetime):
        """A clock that was set back by a day."""

        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return datetime.now(zone) - timedelta(days=1)

    post(iris, rows)
    assert [train(settings, iris, run) for run in ("a", "a", "b", "a", "c")] == ["1", "1", "2", "1", "3"]
    first = promote(settings, iris, "a")
    monkeypatch.setattr("levada.registry.book.datetime", Yesterday)
    second = promote(settings, iris, "b")
    third = promote(settings, iris, "c")
    assert first.decided_at < second.decided_at < third.decided_at
    client = tracking.connect(settings)
    found = [(str(each.version), each.tags) for each in tracking.versions(client, "iris")]
    assert evidence.newest(b"the key of the gate", "iris", found) == third


@pytest.mark.parametrize(
    "change", ["champion = '2'", "generation = 9", "signature = 'x'", "record = NULL, champion = '2'"]
)
def test_a_row_that_another_hand_wrote_decides_nothing(
    change: str, settings: Settings, iris: Pipeline, rows: list[Any], post: Post, postgres: PostgresSettings
) -> None:
    post(iris, rows)
    for run in ("a", "b"):
        train(settings, iris, run)
        promote(settings, iris, run)
    with psycopg.connect(postgres.url("postgresql")) as connection:
        connection.execute(f"UPDATE registry.generation SET {change}")
    with pytest.raises(TrainingError, match=r"iris in registry\.generation was written by another hand, or before"):
        promote(settings, iris, "b")
    with psycopg.connect(postgres.url("postgresql")) as connection:
        connection.execute("DELETE FROM registry.generation")
    assert promote(settings, iris, "b").champion == "1"


@pytest.mark.row(47, part="two gates")
def test_two_gates_at_once_cannot_both_win(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(iris, rows)
    for run in ("a", "b"):
        train(settings, iris, run)
    gather, together, looked = case.gather, threading.Barrier(2), []

    def wait(*given: Any) -> Any:
        found = gather(*given)
        looked.append(given[-1])
        if len(looked) <= 2:
            together.wait(60)  # both have seen that there is no champion
        return found

    monkeypatch.setattr(case, "gather", wait)
    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(lambda run: promote(settings, iris, run), ("a", "b")))
    assert sorted(record.outcome for record in records) == ["kept", "promoted"]
    won = next(record for record in records if record.outcome == "promoted")
    lost = next(record for record in records if record.outcome == "kept")
    assert (lost.champion, lost.generation) == (won.version, 1)
    assert looked[:2] == [None, None]
    assert str(looked[2].version) == won.version  # judged anew, against the one that was faster
    client = tracking.connect(settings)
    assert str(client.get_model_version_by_alias("iris", "champion").version) == won.version
    found = [(str(each.version), each.tags) for each in tracking.versions(client, "iris")]
    assert evidence.newest(b"the key of the gate", "iris", found).champion == won.version  # type: ignore[union-attr]


def test_two_gates_of_one_version_at_once_leave_the_report_that_was_signed(
    settings: Settings,
    weak: Pipeline,
    iris: Pipeline,
    rows: list[Any],
    post: Post,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post(iris, rows)
    train(settings, weak, "weak")  # a report has latencies, which differ each time, once there is a champion
    promote(settings, weak, "weak")
    train(settings, iris, "a")
    gather, upload, take = case.gather, tracking.upload, Book.take
    together, taken, uploads = threading.Barrier(2), threading.Event(), []

    def meet(*given: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(4)  # both are past the question whether there is a record
        return gather(*given)

    def late(*given: Any) -> None:
        uploads.append(given)
        if len(uploads) == 2:
            taken.wait(30)
        upload(*given)

    def first(book: Book, record: Record) -> bool:
        done = take(book, record)
        taken.set()
        return done

    with monkeypatch.context() as patch:
        patch.setattr(case, "gather", meet)
        patch.setattr(tracking, "upload", late)
        patch.setattr(Book, "take", first)
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(lambda run: promote(settings, iris, run), ("a", "a"))
    assert one == two
    assert (one.outcome, one.generation) == ("promoted", 2)
    client = tracking.connect(settings)
    report = tracking.download(client, client.get_model_version("iris", "2").run_id, case.REPORT_FILE)
    assert sha256(report).hexdigest() == one.report_sha256
    train(settings, iris, "b")
    assert promote(settings, iris, "b").outcome == "kept"


def test_a_gate_waits_for_another_one_of_its_run_and_says_so_if_that_hangs(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("levada.registry.generation._WAIT", "200ms")
    with generations.alone("iris", "a"):
        with generations.alone("iris", "b"), generations.alone("wine", "a"):
            pass
        with (
            pytest.raises(TrainingError, match="another gate of iris has been at run a"),
            generations.alone("iris", "a"),
        ):
            pass
    with generations.alone("iris", "a"):
        pass


def test_a_gate_that_lost_its_connection_keeps_nobody_away_and_writes_nothing(
    settings: Settings, generations: Generations, iris: Pipeline, rows: list[Any], post: Post, monkeypatch: Any
) -> None:
    post(iris, rows)
    train(settings, iris, "a")
    gather = case.gather

    def cut(*given: Any) -> Any:
        found = gather(*given)
        with psycopg.connect(settings.postgres.url("postgresql")) as connection:  # type: ignore[union-attr]
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            )
        return found

    with monkeypatch.context() as patch:
        patch.setattr(case, "gather", cut)
        with pytest.raises(TrainingError, match="connection to PostgreSQL was lost, and another gate may judge run a"):
            promote(settings, iris, "a")
    client = tracking.connect(settings)
    assert not client.list_artifacts(client.get_model_version("iris", "1").run_id, "gate")
    with generations.alone("iris", "a"):
        pass
    assert promote(settings, iris, "a").outcome == "promoted"
