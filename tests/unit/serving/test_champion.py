"""Which model serves, whatever the registry says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from levada import evidence
from levada.evidence import GATE_TAG, SIGNATURE_TAG
from levada.serving.cache import Cache
from levada.serving.champion import Watcher
from levada.serving.registry import Registry
from levada.watched import WATCH_TAG, Watched

from .conftest import KEY, FakeMlflow, Stored

Make = Callable[..., bytes]


@pytest.fixture
def registry(mlflow: FakeMlflow) -> Registry:
    return Registry(mlflow.uri)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "models", "things")


@pytest.fixture
def watcher(registry: Registry, cache: Cache) -> Watcher:
    return Watcher(registry, cache, "things", KEY)


def serving(watcher: Watcher) -> str | None:
    watcher.look()
    return watcher.champion.version if watcher.champion is not None else None


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("levada_model_refused_total", {"name": "things", "reason": reason}) or 0.0


def test_nothing_serves_before_a_promotion(mlflow: FakeMlflow, watcher: Watcher, make_model: Make) -> None:
    assert serving(watcher) is None
    mlflow.add("1", make_model(), champion=None)
    assert serving(watcher) is None
    mlflow.alias = "1"  # by hand, though the gate refused it
    before = refused("gate")
    assert serving(watcher) is None
    assert serving(watcher) is None
    assert refused("gate") == before + 1  # told once, not at every look


@pytest.mark.row(52)
def test_a_promoted_version_is_served_at_the_next_look(mlflow: FakeMlflow, watcher: Watcher, make_model: Make) -> None:
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.promote("2", make_model(("a", "b")))
    assert serving(watcher) == "2"
    assert REGISTRY.get_sample_value("levada_model_version_info", {"name": "things", "version": "2"}) == 1
    assert REGISTRY.get_sample_value("levada_model_version_info", {"name": "things", "version": "1"}) is None


def test_a_pod_is_ready_with_its_champion_or_while_there_is_none_at_all(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, watcher: Watcher, make_model: Make, tmp_path: Path
) -> None:
    mlflow.broken = True
    watcher.look()
    assert not watcher.ready  # it may be that a champion is there
    mlflow.broken = False
    watcher.look()
    assert watcher.ready
    mlflow.promote("1", make_model())
    late = Watcher(registry, cache, "things", KEY)
    assert not late.ready
    late.look()
    assert late.ready
    mlflow.versions["1"].raw = b"no model"
    hurt = Watcher(registry, Cache(tmp_path / "none", "things"), "things", KEY)
    hurt.look()
    assert not hurt.ready


def without(*tags: str) -> Callable[[Stored], None]:
    return lambda stored: [stored.tags.pop(tag) for tag in tags] and None


def changed(stored: Stored) -> None:
    stored.tags[GATE_TAG] = stored.tags[GATE_TAG].replace('"value":0.95', '"value":0.99')


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without(GATE_TAG, SIGNATURE_TAG), "unsigned"),
        (without(SIGNATURE_TAG), "unsigned"),
        (changed, "signature"),
        (lambda stored: setattr(stored, "raw", stored.raw + b"\x00"), "hash"),
    ],
)
def test_evidence_that_does_not_hold_keeps_the_last_good_model(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make, change: Callable[[Stored], None], reason: str
) -> None:
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.promote("2", make_model(("a", "b")))
    change(mlflow.versions["2"])
    before = refused(reason)
    assert serving(watcher) == "1"
    assert refused(reason) == before + 1


def test_a_record_signed_by_another_key_or_copied_from_another_version_serves_nothing(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make
) -> None:
    mlflow.promote("1", make_model())
    mlflow.add("2", make_model(), champion="2", key=b"a key that was guessed")
    mlflow.versions["3"] = Stored(make_model(), dict(mlflow.versions["1"].tags))
    for alias in ("2", "3"):
        mlflow.alias = alias
        assert serving(watcher) == "1"


def test_a_version_that_was_refused_does_not_serve_even_if_a_record_names_it(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make
) -> None:
    mlflow.add("1", make_model(), champion=None)
    mlflow.add("2", make_model(), champion="1")
    mlflow.alias = "1"
    before = refused("gate")
    assert serving(watcher) is None
    assert refused("gate") == before + 1


def test_a_promoted_file_that_is_no_model_keeps_the_last_good_one(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make
) -> None:
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.promote("2", make_model())
    mlflow.versions["2"].raw = b"no model"
    assert serving(watcher) == "1"


def test_an_alias_moved_by_hand_changes_nothing_not_even_for_a_new_process(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, watcher: Watcher, make_model: Make
) -> None:
    mlflow.promote("1", make_model())
    mlflow.promote("2", make_model(("a", "b")))
    mlflow.add("3", make_model(), champion="2")  # refused
    assert serving(watcher) == "2"
    before = refused("superseded")
    for alias in ("1", "3", None):
        mlflow.alias = alias
        assert serving(watcher) == "2"
        assert serving(Watcher(registry, cache, "things", KEY)) == "2"
    assert refused("superseded") > before


def test_a_champion_older_than_the_page_of_versions_is_still_found(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make
) -> None:
    raw = make_model()
    mlflow.promote("1", raw)
    for number in range(2, 56):
        mlflow.add(str(number), raw, champion="1")
    mlflow.alias = "55"
    assert serving(watcher) == "1"


def test_a_registry_that_fails_changes_nothing(mlflow: FakeMlflow, watcher: Watcher, make_model: Make) -> None:
    mlflow.broken = True
    assert serving(watcher) is None
    mlflow.broken = False
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.broken = True
    assert serving(watcher) == "1"
    mlflow.broken = False
    del mlflow.versions["1"]  # and a registry that lost everything neither
    mlflow.alias = None
    assert serving(watcher) == "1"


def test_a_rollback_serves_the_older_champion_again(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, watcher: Watcher, make_model: Make
) -> None:
    mlflow.promote("1", make_model())
    mlflow.promote("2", make_model(("a", "b")))
    assert serving(watcher) == "2"
    mlflow.roll_back("2", to="1")
    assert serving(watcher) == "1"
    assert serving(Watcher(registry, cache, "things", KEY)) == "1"
    mlflow.add("3", make_model(), champion="1", generation=3)  # a later decision that changes nothing
    assert serving(watcher) == "1"


def test_the_gates_record_is_followed_before_the_alias_is(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make
) -> None:
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.add("2", make_model(("a", "b")), champion="2")  # the gate died before it moved the alias
    assert serving(watcher) == "2"


EXAMPLE = {
    "instances": [{"x": 0.5, "n": 1}, {"x": -2, "n": 0, "note": "seen"}],
    "scores": [[0.18242552380635635, 0.8175744761936437], [0.8807970779778823, 0.11920292202211755]],
}


@pytest.mark.row(52)
@pytest.mark.parametrize("broken", ["", "a score", "a row", "the file", "no JSON", "a feature"])
def test_a_model_that_does_not_answer_its_example_is_not_swapped_in(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make, broken: str
) -> None:
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.promote("2", make_model(("a", "b")))
    example = json.loads(json.dumps(EXAMPLE))
    if broken == "a score":
        example["scores"][1][0] += 0.0001
    if broken == "a row":
        del example["scores"][1]
    if broken == "a feature":
        del example["instances"][0]["x"]
    mlflow.explain("2", b"{" if broken == "no JSON" else json.dumps(example).encode())
    if broken == "the file":
        mlflow.versions["2"].example += b" "
    assert serving(watcher) == ("1" if broken else "2")


@pytest.mark.row(52, part="the cache")
def test_a_start_without_the_registry_serves_what_served(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, watcher: Watcher, make_model: Make
) -> None:
    mlflow.promote("1", make_model())
    mlflow.promote("2", make_model(("a", "b")))
    mlflow.explain("2", json.dumps(EXAMPLE).encode())
    assert serving(watcher) == "2"
    mlflow.roll_back("2", to="1")
    assert serving(watcher) == "1"
    mlflow.broken = True
    late = Watcher(registry, cache, "things", KEY)
    assert serving(late) == "1"
    assert late.ready
    mlflow.broken = False
    mlflow.promote("5", make_model())
    assert serving(late) == "5"
    downloads = mlflow.downloads
    assert serving(Watcher(registry, cache, "things", KEY)) == "5"
    assert mlflow.downloads == downloads  # it was on disk


@pytest.mark.parametrize("what", ["model", "records", "key"])
def test_a_cache_that_was_changed_is_not_served(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, watcher: Watcher, make_model: Make, tmp_path: Path, what: str
) -> None:
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.broken = True
    (file,) = (tmp_path / "models" / "things" / "1").iterdir()
    if what == "model":
        file.write_bytes(make_model(("evil", "worse")))
    if what == "records":
        records = tmp_path / "models" / "things" / "versions.json"
        records.write_text(records.read_text().replace("0.95", "0.99"))
    late = Watcher(registry, cache, "things", b"another key" if what == "key" else KEY)
    assert serving(late) is None
    assert not late.ready
    mlflow.broken = False
    assert serving(late) == (None if what == "key" else "1")
    # With another key than the gate's a pod must not take the place of one that answers.
    assert late.ready == (what != "key")


def test_a_pod_that_starts_when_the_champions_records_were_damaged_serves_what_it_has(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, watcher: Watcher, make_model: Make
) -> None:
    mlflow.promote("1", make_model())
    assert serving(watcher) == "1"
    mlflow.versions["1"].tags[SIGNATURE_TAG] = "0" * 64
    assert serving(Watcher(registry, cache, "things", KEY)) == "1"


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    mlflow: FakeMlflow, registry: Registry, make_model: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    mlflow.promote("1", make_model())
    assert serving(Watcher(registry, Cache(tmp_path / "file", "things"), "things", KEY)) == "1"


def test_the_cache_keeps_the_files_of_few_versions(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make, tmp_path: Path
) -> None:
    for number in range(1, 10):
        mlflow.promote(str(number), make_model())
        assert serving(watcher) == str(number)
    assert len([*(tmp_path / "models" / "things").glob("*/")]) <= 6


def challenger(watcher: Watcher) -> str | None:
    watcher.look()
    return watcher.challenger.version if watcher.challenger is not None else None


def test_the_newest_version_that_was_not_refused_is_the_challenger(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, make_model: Make
) -> None:
    watcher = Watcher(registry, cache, "things", KEY, shadow=True)
    mlflow.add("1", make_model(), champion=None, outcome="kept")
    assert challenger(watcher) is None
    mlflow.promote("2", make_model())
    assert challenger(watcher) is None
    mlflow.add("3", make_model(), champion="2", outcome="kept")
    assert challenger(watcher) == "3"
    mlflow.add("4", make_model(), champion="2", outcome="needs approval")
    mlflow.add("5", make_model(), champion="2")
    mlflow.add("6", make_model(), champion="2", outcome="kept", key=b"a key that was guessed")
    assert challenger(watcher) == "4"
    mlflow.promote("7", make_model())
    assert challenger(watcher) is None
    assert watcher.champion is not None
    assert watcher.champion.version == "7"


def test_versions_that_wait_for_a_person_are_counted(mlflow: FakeMlflow, watcher: Watcher, make_model: Make) -> None:
    for number, outcome, waiting in (("1", "needs approval", 1), ("2", "needs approval", 2), ("3", "kept", 2)):
        mlflow.add(number, make_model(), champion=None, outcome=outcome)  # type: ignore[arg-type]
        watcher.look()
        assert REGISTRY.get_sample_value("levada_model_waiting", {"name": "things"}) == waiting
    mlflow.promote("4", make_model())
    watcher.look()
    assert REGISTRY.get_sample_value("levada_model_waiting", {"name": "things"}) == 0


def test_neither_a_broken_champion_nor_a_broken_challenger_is_loaded_at_each_look(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, make_model: Make
) -> None:
    watcher = Watcher(registry, cache, "things", KEY, shadow=True)
    mlflow.promote("1", make_model())
    watcher.look()
    mlflow.promote("2", make_model())
    mlflow.add("3", make_model(), champion="2", outcome="kept")
    for number in ("2", "3"):
        mlflow.versions[number].raw = b"no model"
    watcher.look()
    downloads = mlflow.downloads
    for _ in range(3):
        watcher.look()
    assert mlflow.downloads == downloads


def test_a_challenger_that_comes_takes_the_files_of_older_ones_away(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, make_model: Make, tmp_path: Path
) -> None:
    watcher = Watcher(registry, cache, "things", KEY, shadow=True)
    mlflow.promote("1", make_model())
    watcher.look()
    for number in map(str, range(2, 12)):
        mlflow.add(number, make_model(), champion="1", outcome="kept")
        assert challenger(watcher) == number
    for number in map(str, range(12, 22)):  # nor do those stay that cannot be loaded
        mlflow.add(number, make_model(), champion="1", outcome="kept")
        mlflow.explain(number, b"{")
        assert challenger(watcher) is None
    found = {path.name for path in (tmp_path / "models" / "things").glob("*/")}
    assert found == {"1", *map(str, range(17, 22))}
    mlflow.broken = True
    assert serving(Watcher(registry, cache, "things", KEY)) == "1"


def test_what_is_known_of_versions_stays_little_and_is_verified_once(
    mlflow: FakeMlflow, registry: Registry, cache: Cache, make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed, sign = 0, evidence.sign

    def counted(key: bytes, model: str, record: str) -> str:
        nonlocal signed
        signed += 1
        return sign(key, model, record)

    monkeypatch.setattr(evidence, "sign", counted)
    watcher, raw = Watcher(registry, cache, "things", KEY, shadow=True), make_model()
    mlflow.promote("1", raw)
    mlflow.add("2", raw, champion="1", outcome="kept")
    assert challenger(watcher) == "2"
    for number in range(3, 83):
        mlflow.add(str(number), raw, champion="1")
        if number % 5 == 0:
            assert challenger(watcher) == "2"
    assert watcher._versions.keys() == {"1", "2", *map(str, range(33, 81))} | {"31", "32"}
    watcher.look()
    before = signed
    watcher.look()
    assert signed == before
    assert serving(watcher) == "1"


def test_a_look_that_breaks_off_is_not_the_last(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, stop = 0, threading.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            stop.set()
        raise AttributeError("not foreseen")

    def errors() -> float:
        return REGISTRY.get_sample_value("levada_model_poll_errors_total", {"name": "things"}) or 0.0

    before = errors()
    monkeypatch.setattr(watcher, "look", look)
    watcher.run(stop, 0.01)
    assert (looks, errors()) == (3, before + 3)


@pytest.mark.row(55, part="drift and quality of a model")
def test_what_was_watched_is_shown_and_stays_while_the_registry_is_away(
    mlflow: FakeMlflow, watcher: Watcher, make_model: Make
) -> None:
    def shown(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"levada_model_{name}", {"name": "things", "version": "1", **labels})

    mlflow.promote("1", make_model())
    watcher.look()
    assert shown("watch_alarms") is None
    found = Watched(
        "2026-11-28T10:00:00+00:00", 900, "accuracy", 120, 0.91, 0.95, 0.03, {"x": 0.31, "kind": 0.02}, 0.2, ("x: …",)
    )
    mlflow.versions["1"].tags[WATCH_TAG] = found.to_json()
    watcher.look()
    mlflow.broken = True
    watcher.look()
    assert (shown("quality", metric="accuracy"), shown("quality_frozen", metric="accuracy")) == (0.91, 0.95)
    assert (shown("drift_psi", field="x"), shown("drift_psi", field="kind")) == (0.31, 0.02)
    assert (shown("watch_alarms"), shown("watch_rows"), shown("watch_labelled_rows")) == (1, 900, 120)
    assert shown("calibration_error") == 0.03
    assert shown("watch_timestamp_seconds") == 1795860000
    mlflow.broken = False
    few = Watched("2026-11-28T11:00:00+00:00", 3, "accuracy", note="3 predictions are logged")
    mlflow.versions["1"].tags[WATCH_TAG] = few.to_json()
    watcher.look()
    assert (shown("quality", metric="accuracy"), shown("drift_psi", field="x"), shown("watch_alarms")) == (
        None,
        None,
        0,
    )
    for text in ('{"at": 7}', "[1]", few.to_json().replace("{}", "[1]"), "\ud800"):  # by another hand
        mlflow.versions["1"].tags[WATCH_TAG] = text
        watcher.look()
        assert shown("watch_rows") is None
    assert serving(watcher) == "1"
    mlflow.versions["1"].tags[WATCH_TAG] = found.to_json()
    mlflow.promote("2", make_model(("a", "b")))
    watcher.look()
    assert shown("watch_rows") is None  # of another version
