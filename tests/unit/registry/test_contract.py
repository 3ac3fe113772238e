"""What a trainer is given, what it may give back, and what is refused."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from levada.config import Settings
from levada.evidence import EXAMPLE_FILE, MODEL_FILE
from levada.pipeline import Pipeline, PipelineError, parse_pipeline
from levada.registry import export, tracking
from levada.registry.contract import Context, refuse_identifiers, seed_of
from levada.registry.data import features_of
from levada.registry.dataset import Dataset, sides, trainable
from levada.registry.errors import TrainingError
from levada.registry.promote import promote
from levada.registry.replay import replay
from levada.registry.train import train
from levada.registry.trainers import linear
from levada.scoring import Feature, Meta, OnnxModel

from .conftest import redeclared, snapshot

Post = Callable[..., None]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own insides


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Puts a trainer where a user's image would have it; its name for the declaration."""

    def add(trainer: Any) -> str:
        module = ModuleType("own_trainer")
        module.build = trainer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "own_trainer", module)
        monkeypatch.setattr("inspect.getsource", lambda _: "own")
        return "own_trainer:build"

    return add


def test_a_trainer_gets_its_rows_the_declaration_and_a_context(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, own: Callable[[Any], str]
) -> None:
    given: list[Any] = []

    def build(*arguments: Any) -> Any:
        given.extend(arguments)
        return linear(*arguments)

    post(iris, rows)
    train(settings, redeclared(iris, trainer=own(build)), "a")
    table, pipeline, context = given
    assert isinstance(table, pa.Table)
    assert table.column_names == [*iris.features, "species"]
    assert len(table) < 150  # nothing that is held out
    assert pipeline.name == "iris"
    assert (context.seed, context.run) == (seed_of("a"), "a")
    assert seed_of("a") != seed_of("b")


@pytest.mark.row(43, part="a trainer that returns ONNX")
def test_a_trainer_may_return_onnx_instead(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, own: Callable[[Any], str]
) -> None:
    def build(rows: pa.Table, pipeline: Pipeline, context: Context) -> bytes:
        estimator = linear(rows, pipeline, context)
        return export.to_onnx_file(estimator, Meta(features_of(pipeline), "other", tuple(estimator.classes_)))

    post(iris, rows)
    version = train(settings, redeclared(iris, trainer=own(build)), "a")
    client = tracking.connect(settings)
    raw = tracking.download(client, client.get_model_version("iris", version).run_id, MODEL_FILE)
    meta = OnnxModel(raw).meta
    assert (meta.label, meta.labels) == ("species", ("setosa", "versicolor", "virginica"))
    assert promote(settings, iris, "a").outcome == "promoted"


def test_onnx_of_other_inputs_is_refused(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, own: Callable[[Any], str]
) -> None:
    petals = redeclared(iris, features=("petal_length", "petal_width"))

    def build(rows: pa.Table, _: Pipeline, context: Context) -> bytes:
        estimator = linear(rows, petals, context)
        return export.to_onnx_file(estimator, Meta(features_of(petals), "species", tuple(estimator.classes_)))

    post(iris, rows)
    with pytest.raises(TrainingError, match=r"inputs \['petal_length', 'petal_width'\] are not the features"):
        train(settings, redeclared(iris, trainer=own(build)), "a")


@pytest.mark.row(45, part="text of which nearly every row has its own, whole numbers that count")
def test_identifier_columns_are_refused_and_measurements_are_not() -> None:
    chance = random.Random(3)
    fields = {
        "order_no": {"type": "long"}, "token": {"type": "string"}, "age": {"type": "long"},
        "weight": {"type": "double"}, "city": {"type": "string"}, "y": {"type": "string"},
    }  # fmt: skip
    rows = [
        {"order_no": 7000 + number, "token": f"{chance.getrandbits(64):x}", "age": chance.randrange(18, 2**40),
         "weight": chance.random(), "city": chance.choice(["Faro", "Porto"]), "y": chance.choice("ab")}
        for number in range(300)
    ]  # fmt: skip
    pipeline = parse_pipeline({"fields": fields, "model": {"label": "y"}}, "orders")
    training, _ = trainable(sides(snapshot(rows), pipeline), pipeline)
    with pytest.raises(TrainingError, match=r"model\.features: order_no, token look like identifiers"):
        refuse_identifiers(training)
    named = parse_pipeline({"fields": fields, "model": {"label": "y", "features": ["age", "weight", "city"]}}, "orders")
    refuse_identifiers(trainable(sides(snapshot(rows), named), named)[0])


def column_of(numbers: Any) -> Dataset:
    values = np.asarray(numbers, dtype=float)
    return Dataset((Feature("n", "long", False),), "y", {"n": values}, np.full(len(values), "a", dtype=object))


@pytest.mark.parametrize("count", [30, 300, 10_000])
def test_an_id_is_found_though_rows_came_again_or_are_missing_or_lie_far_away(count: int) -> None:
    chance = np.random.default_rng(count)
    ids = 7000 + np.arange(count)
    few = ids[: count // 200 + 1]
    for hidden in (ids, np.append(ids, few), np.sort(chance.choice(ids, 4 * count // 5, replace=False))):
        with pytest.raises(TrainingError, match="n look like identifiers"):
            refuse_identifiers(column_of(hidden))
    if count >= 300:
        for hidden in (np.append(ids, 10**15), 3 * ids, 8 * ids + chance.integers(0, 8, count)):
            with pytest.raises(TrainingError, match="n look like identifiers"):
                refuse_identifiers(column_of(hidden))


def test_whole_numbers_that_were_measured_are_features() -> None:
    chance = np.random.default_rng(2)
    refused = 0
    for count in (25, 60, 300, 3000):
        for span in (2, 5, 10, 50, 1000):
            for _ in range(20):
                refused += _refused(chance.integers(0, span * count, count))
        refused += _refused(np.exp(chance.normal(7, 1, count)).round())  # prices
        refused += _refused(chance.normal(0, 20 * count, count).round())
        refused += _refused(np.arange(count) * 40 + chance.integers(0, 40, count))  # a meter that runs on
    assert refused <= 1


def _refused(numbers: Any) -> bool:
    try:
        refuse_identifiers(column_of(numbers))
    except TrainingError:
        return True
    return False


@pytest.mark.row(45, part="keys and undeclared columns")
@pytest.mark.parametrize(
    ("features", "said"),
    [
        (["user", "age"], "model.features holds the key `user`"),
        (["agee"], "names the field `agee`, which is not declared: did you mean `age`"),
        (["_event_id"], "names the field `_event_id`, which is not declared"),
        (["y"], "model.features holds the label `y`"),
        (["pin"], "model: `pin` is sensitive"),
    ],
)
def test_keys_labels_and_undeclared_columns_are_no_features(features: list[str], said: str) -> None:
    fields = {
        "user": {"type": "string"}, "age": {"type": "long"}, "y": {"type": "string"},
        "pin": {"type": "string", "sensitive": "argon2id"},
    }  # fmt: skip
    with pytest.raises(PipelineError, match=said):
        parse_pipeline({"key": "user", "fields": fields, "model": {"label": "y", "features": features}}, "orders")


@pytest.mark.row(50)
@pytest.mark.parametrize("trainer", ["linear", "forest", "boosting"])
def test_a_replay_from_the_record_gives_the_same_model(
    trainer: str, settings: Settings, iris: Pipeline, rows: list[Any], post: Post
) -> None:
    post(iris, rows)
    train(settings, iris, "first")
    promote(settings, iris, "first")  # from here on its frozen rows are kept apart
    post(iris, rows[:20])
    version = train(settings, redeclared(iris, trainer=f"levada.registry.trainers:{trainer}"), "second")
    post(iris, rows)  # what came later changes nothing
    done = replay(settings, "iris", version)
    print(done)
    assert done.same
    assert done.difference == 0.0
    assert done.changed == []
    assert {"accuracy", "log_loss"} <= set(done.metrics)


@pytest.mark.row(50, part="and says what changed")
def test_a_replay_that_gives_another_model_says_so(
    settings: Settings, iris: Pipeline, rows: list[Any], post: Post, own: Callable[[Any], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    post(iris, rows)
    train(settings, redeclared(iris, trainer=own(linear)), "a")

    def careless(rows: pa.Table, pipeline: Pipeline, context: Context) -> Any:
        return linear(rows.slice(0, 60), pipeline, context)

    own(careless)
    monkeypatch.setattr("inspect.getsource", lambda _: "changed")
    monkeypatch.setenv("LEVADA_IMAGE", "mine:2")
    done = replay(settings, "iris", "1")
    assert not done.same
    assert done.difference > 0
    assert done.changed == ["the source of the trainer", "image none then, mine:2 now"]
    with pytest.raises(TrainingError, match="iris has no version 9"):
        replay(settings, "iris", "9")


@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_a_regression_goes_the_whole_way(metric: str, settings: Settings, post: Post) -> None:
    chance = np.random.default_rng(4)
    fields = {
        "size": {"type": "double"},
        "rooms": {"type": "long"},
        "city": {"type": "string"},
        "rent": {"type": "double"},
    }
    gate = {
        "metric": metric,
        "floor": 30.0 if metric == "rmse" else 0.9,
        "leastRows": 50,
        "slices": {"city": 35.0 if metric == "rmse" else 0.8},
    }
    weak = {
        "fields": fields,
        "model": {
            "label": "rent",
            "features": ["size"],
            "gate": gate | {"floor": 200.0 if metric == "rmse" else 0.0, "slices": {}},
        },
    }
    rows = [
        {"size": float(size), "rooms": int(rooms), "city": city,
         "rent": float(9 * size + 40 * rooms + (300 if city == "Faro" else 0) + 10 * noise)}
        for size, rooms, city, noise in zip(
            chance.uniform(20, 120, 400), chance.integers(1, 6, 400), chance.choice(["Faro", "Porto"], 400),
            chance.normal(size=400), strict=True)
    ]  # fmt: skip
    pipeline = parse_pipeline({"fields": fields, "model": {"label": "rent", "gate": gate}}, "rents")
    post(pipeline, rows)
    first = parse_pipeline(weak, "rents")
    train(settings, first, "a")
    assert promote(settings, first, "a").outcome == "promoted"
    train(settings, pipeline, "b")
    record = promote(settings, pipeline, "b")
    print(record)
    assert (record.outcome, record.metric) == ("promoted", metric)
    train(settings, pipeline, "c")
    assert promote(settings, pipeline, "c").outcome == "kept"
    client = tracking.connect(settings)
    run_id = client.get_model_version("rents", "2").run_id
    example = json.loads(tracking.download(client, run_id, EXAMPLE_FILE))
    assert isinstance(example["instances"][0]["rooms"], int)
    assert all(len(scores) == 1 for scores in example["scores"])
    assert b"<svg" in tracking.download(client, run_id, "gate/report.html")
    assert replay(settings, "rents", "2").same


def test_a_frame_is_what_the_estimator_will_be_asked_with() -> None:
    fields = {
        "n": {"type": "long", "required": False},
        "b": {"type": "boolean"},
        "s": {"type": "string", "required": False},
        "y": {"type": "string"},
    }
    pipeline = parse_pipeline({"fields": fields, "model": {"label": "y"}}, "mixed")
    rows = snapshot([{"n": None, "b": True, "s": None, "y": "a"}, {"n": 3, "b": False, "s": "red", "y": "b"}] * 20)
    split = sides(rows, pipeline)
    frame = Dataset(split.every.features, "y", split.every.columns, split.every.labels).to_arrow().to_pandas()
    assert np.isnan(frame["n"][0])
    assert (frame["n"][1], frame["b"][0], frame["s"][0], frame["s"][1]) == (3.0, 1.0, "", "red")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"label": "rent", "gate": {"metric": "rmse"}}, "floor is missing: which rmse is good enough only you can say"),
        ({"label": "city", "gate": {"metric": "r2", "floor": 0.5}}, "`city` is a string; a regression predicts a long"),
        ({"label": "rent"}, "`rent` is a double; a class is a string, long or boolean"),
        ({"label": "city", "gate": {"floor": 1.5}}, "floor is 1.5; an accuracy is between 0 and 1"),
        ({"label": "city", "gate": {"slices": {"rent": 0.5}}}, "`rent` is a double, which has no slices"),
        ({"label": "city", "gate": {"slices": {"town": 0.5}}}, "names the field `town`, which is not declared"),
        ({"label": "city", "split": {"by": "group"}}, "field belongs to `by: group`, and is needed there"),
        ({"label": "city", "split": {"by": "group", "field": "citi"}}, "did you mean `city`"),
    ],
)
def test_a_declaration_that_cannot_be_judged_is_refused_with_what_to_do(model: dict[str, Any], said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        parse_pipeline({"fields": {"rent": {"type": "double"}, "city": {"type": "string"}}, "model": model}, "rents")
