"""The declaration of a pipeline: one entry from which topic, sink, table, DAG, gate and predictor are derived.

A pipeline is written once, in the chart's values under ``global.pipelines.<name>``. The chart renders it to
``<name>.json``; every process reads it from there by :func:`load_pipelines`. The JSON Schema of
:class:`Declaration` is part of the chart's own schema, so names and types are refused before a rollout; rules and
references between fields are checked here, by ``levada check`` and by each process that starts.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic import Field as Property
from pydantic.alias_generators import to_camel

from levada.errors import UserError

FieldType = Literal["string", "long", "double", "boolean", "timestamp"]
"""``long`` is a signed 64-bit integer, ``double`` an IEEE 754 binary64, ``timestamp`` RFC 3339 text with a zone."""

_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
Duration = Annotated[str, Property(pattern=r"^[1-9][0-9]*(ms|s|m|h|d)$", examples=["10s", "7d"])]
"""A whole number and a unit: ms, s, m, h or d."""

PIPELINE_NAME: Final = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
FIELD_NAME: Final = r"^[a-z][a-z0-9_]{0,62}$"
MODEL_VERSION: Final = "model_version"
"""Column of a logged prediction: the version that said it."""
MODEL_SCORE: Final = "model_score"
"""Column of a logged prediction: the probability that the version gave to the class it said."""
SHADOW: Final = "/shadow"
"""What follows the id of a logged prediction in the id of what a challenger in shadow said to the same."""
_PREDICTIONS: Final = ".predictions"
_RULES_UNREAD: Final = {"rules": "unread"}
"""Context of a validation that leaves rules alone."""


class PipelineError(UserError):
    """A declaration that cannot be used; the message names the pipeline, the field and what to do."""


def seconds(duration: str) -> float:
    """Length of a :data:`Duration` in seconds."""
    number, unit = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", duration).groups()  # type: ignore[union-attr]
    return int(number) * _UNIT_SECONDS[unit]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


class Field(_Model):
    """One field of an event."""

    type: FieldType
    """Type of the field in JSON, in the lake and in the model."""
    rule: str | None = None
    """Boolean SQL expression that every accepted event keeps; NULL fails it."""
    one_of: Annotated[tuple[str, ...], Property(min_length=1)] | None = None
    """The values that a string field may have."""
    required: bool = True
    """Whether an event without this field, or with null in it, is refused."""
    sensitive: Literal["argon2id", "hmac"] | None = None
    """What the collector puts in place of the clear value, which nobody after it sees: ``argon2id`` with a salt of its
    own for values that could be guessed, ``hmac`` where equal values must stay equal."""

    @model_validator(mode="after")
    def _is_for_strings(self) -> Self:
        if self.one_of is not None and self.type != "string":
            raise ValueError(f"oneOf is for string fields, this one is a {self.type}: use a rule with IN")
        if self.sensitive is not None and self.type != "string":
            raise ValueError(f"sensitive is for string fields, this one is a {self.type}: a digest is text")
        return self


class Rate(_Model):
    """A bound on how often one value of a field may come."""

    field: str
    """The field whose values are counted apart."""
    events: Annotated[int, Property(ge=1, le=1_000_000)]
    """More events than this are suspicious."""
    per: Duration = "1m"
    """The time in which they are counted, in each collector by itself."""


class Screen(_Model):
    """One way in which an event is suspicious: a rate or a rule."""

    rate: Rate | None = None
    """Suspicious are events of a value that comes more often than this."""
    rule: str | None = None
    """Suspicious are events for which this boolean SQL expression is TRUE; NULL is not."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if (self.rate is None) == (self.rule is None):
            raise ValueError("give one of rate and rule")
        return self


class Topic(_Model):
    """The Kafka topic of the pipeline's events."""

    partitions: Annotated[int, Property(ge=1, le=1000)] = 3
    """Partitions of the topic; they can be raised later, never lowered."""
    retention: Duration = "7d"
    """How long Kafka keeps an event, whether or not it reached the lake."""


class Stream(_Model):
    """The sink that carries events from the topic to the lake."""

    enabled: bool = True
    """Whether a sink runs."""
    engine: Literal["python"] = "python"
    """The engine of the sink."""
    commit_every: Duration = "10s"
    """Longest time between two commits to the lake while events come in."""
    replicas: Annotated[int, Property(ge=1, le=100)] = 1
    """Sinks that share the partitions of the topic; at most as many as there are partitions."""
    on_topic_replaced: Literal["stop", "continue"] = "stop"
    """What a sink does when the topic was deleted and created again: wait for an operator, or read the new topic from
    its beginning. Either way it says so in its log and in a metric."""


class Lake(_Model):
    """The Iceberg table of the pipeline."""

    dedupe_window: Duration = "24h"
    """How long after its arrival a repeated event id is recognised and dropped."""
    late_horizon: Duration = "7d"
    """An event whose own time lies further back than this becomes a dead letter instead of a row in its old hour."""
    max_ahead: Duration = "1h"
    """An event whose own time lies further in the future than this becomes a dead letter."""


class Drift(_Model):
    """How far new data may lie from what the champion was trained on before a person has to look."""

    psi: Annotated[float, Property(gt=0, le=10)] = 0.2
    """A field or the label whose population stability index goes above this, by more than chance explains, raises the
    alarm. In credit scoring, where the index is from, 0.1 is called small and 0.25 large."""
    duplicates: Annotated[float, Property(ge=0, le=1)] = 0.2
    """The share of rows that repeat an earlier row may exceed that of the champion's training data by this."""


class Gate(_Model):
    """What a new model must show before it serves."""

    metric: Literal["accuracy", "log_loss", "rmse", "r2"] = "accuracy"
    """The metric that is compared, on rows that no training saw. `rmse` and `r2` make the model a regression."""
    floor: float | None = None
    """A model worse than this never serves: the least accuracy (0.9 by default) or r2, the most log_loss or rmse."""
    margin: Annotated[float, Property(ge=0)] = 0.005
    """A challenger must beat the champion by more than this, in units of the metric; a tie does not promote."""
    significance: Annotated[float, Property(gt=0, lt=0.5)] = 0.01
    """Greatest chance that a challenger no better than the champion looks better by luck."""
    least_rows: Annotated[int, Property(ge=10)] = 100
    """Rows that the frozen evaluation set needs before a challenger may replace a champion without approval."""
    slices: dict[Annotated[str, Property(pattern=FIELD_NAME)], float] = {}
    """Field → floor that each of its values must reach by itself, for string, long and boolean fields."""
    calibration: Annotated[float, Property(gt=0, le=1)] = 0.2
    """Greatest expected calibration error of a classifier's probabilities."""
    window: Annotated[int, Property(ge=50)] = 1000
    """The newest rows that are looked at by themselves, beside everything that came since the champion was trained."""
    drift: Drift = Drift()
    """How far new data may lie from what the champion was trained on before a person has to look."""

    @property
    def regression(self) -> bool:
        """Whether the model predicts a number instead of a class."""
        return self.metric in ("rmse", "r2")

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is a better one."""
        return self.metric in ("accuracy", "r2")

    @property
    def worst(self) -> float:
        """The worst value of the metric with which a model may serve."""
        return 0.9 if self.floor is None else self.floor

    @model_validator(mode="after")
    def _has_a_floor(self) -> Self:
        if self.floor is None and self.metric != "accuracy":
            raise ValueError(f"floor is missing: which {self.metric} is good enough only you can say")
        if self.metric == "accuracy" and not 0 <= self.worst <= 1:
            raise ValueError(f"floor is {self.worst:g}; an accuracy is between 0 and 1")
        return self


class Split(_Model):
    """Which rows are held out from training, about one in five; equal rows are never on both sides."""

    by: Literal["content", "group", "time"] = "content"
    """`content`: by a hash of the features. `group`: rows with one value of `field` stay together. `time`: the newest
    rows by their event time."""
    field: str | None = None
    """The field whose values are groups."""

    @model_validator(mode="after")
    def _names_its_group(self) -> Self:
        if (self.by == "group") != (self.field is not None):
            raise ValueError("field belongs to `by: group`, and is needed there")
        return self


class Watch(_Model):
    """How the champion is looked after while it serves, by the predictions that are logged."""

    enabled: bool = True
    """Whether a DAG looks at the champion's predictions."""
    schedule: str = "@hourly"
    """When it looks: a cron expression, an Airflow preset, or ``none`` for by hand only."""
    window: Annotated[int, Property(ge=50, le=1_000_000)] = 10_000
    """The newest logged predictions that are looked at; it has to reach back to those whose labels come last."""
    retrain: bool = False
    """Whether an alarm starts a training; what comes out of it has to pass the gate as every other."""


class Model(_Model):
    """The model trained from the lake."""

    enabled: bool = True
    """Whether a training DAG exists."""
    label: str
    """The field that the model predicts: a string, long or boolean field; a long or double one for a regression."""
    features: Annotated[tuple[str, ...], Property(min_length=1)] | None = None
    """The fields that the model sees; by default all but the label, the key, sensitive ones and timestamps."""
    trainer: Annotated[str, Property(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = "levada.registry.trainers:linear"
    """``module:function`` in the image that trains; it returns a fitted estimator or an ONNX model."""
    image: Annotated[str, Property(pattern=r"^\S*$")] = ""
    """Image that trains, with the trainer's module in it, built on Levada's; empty: `batch.trainer.image`."""
    split: Split = Split()
    """Which rows are held out from training."""
    schedule: str = "@hourly"
    """When training runs: a cron expression, an Airflow preset, or ``none`` for by hand only."""
    gate: Gate = Gate()
    """What a new model must show before it serves."""
    watch: Watch = Watch()
    """How the champion is looked after while it serves."""


class Serving(_Model):
    """The predictor of the pipeline."""

    enabled: bool = True
    """Whether a predictor runs; it needs a model."""
    replicas: Annotated[int, Property(ge=1, le=100)] = 1
    """Pods of the predictor; where `max_replicas` is more, the fewest."""
    max_replicas: Annotated[int, Property(ge=1, le=100)] = 1
    """Above `replicas`, pods are added while they are busy, up to this many."""
    challenger: Literal["none", "shadow"] = "none"
    """`shadow`: the newest version that the gate let live without promoting it is asked what the champion is asked. It
    never answers; metrics say how often it would have said the same."""
    logged: Annotated[float, Property(ge=0, le=1)] = 1.0
    """The share of requests whose predictions are kept in the lake; 0: none, and no model is watched."""


class Declaration(_Model):
    """A pipeline as it stands in values: everything but its name."""

    enabled: bool = True
    """Whether anything of the pipeline is rendered."""
    key: str | None = None
    """The field whose value is the Kafka key, so that equal keys keep their order; by default the event id."""
    event_time: str | None = None
    """The timestamp field that says when the event happened; by default it is when the collector took it."""
    fields: Annotated[dict[Annotated[str, Property(pattern=FIELD_NAME)], Field], Property(min_length=1)]
    """The fields of an event, by name; an event with any other field is refused."""
    screen: dict[Annotated[str, Property(pattern=PIPELINE_NAME)], Screen] = {}
    """What makes an event suspicious, by name; such events go to ``<topic>.review`` instead, with the reasons."""
    topic: Topic = Topic()
    """The Kafka topic of the pipeline's events."""
    stream: Stream = Stream()
    """The sink that carries events from the topic to the lake."""
    lake: Lake = Lake()
    """The Iceberg table of the pipeline."""
    model: Model | None = None
    """The model trained from the lake; none without this block."""
    serving: Serving = Serving()
    """The predictor of the pipeline."""

    @property
    def types(self) -> dict[str, str]:
        """Field name → declared type, in declared order."""
        return {name: field.type for name, field in self.fields.items()}

    @property
    def sensitive(self) -> frozenset[str]:
        """The fields whose clear value never leaves the collector."""
        return frozenset(name for name, field in self.fields.items() if field.sensitive is not None)

    @model_validator(mode="after")
    def _references_hold(self, info: ValidationInfo) -> Self:
        problems = [] if info.context == _RULES_UNREAD else self._bad_rules()
        if self.key is not None:
            problems += self._unknown("key", self.key)
            if self.key in self.fields and not self.fields[self.key].required:
                problems.append(f"key: `{self.key}` is not required; an event without it would have no key")
            elif self.key in self.sensitive and self.fields[self.key].sensitive != "hmac":
                problems.append(
                    f"key: `{self.key}` is sensitive; only `sensitive: hmac` gives equal keys for equal values"
                )
        problems += self._bad_event_time()
        problems += self._bad_rates()
        if self.stream.replicas > self.topic.partitions:
            problems.append(
                f"stream.replicas is {self.stream.replicas}, the topic has {self.topic.partitions} partitions: a sink "
                "without a partition has nothing to do"
            )
        if self.model is not None:
            problems += self._bad_model(self.model)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _bad_rules(self) -> list[str]:
        declared = [(f"fields.{name}.rule", field.rule) for name, field in self.fields.items()]
        declared += [(f"screen.{name}.rule", screen.rule) for name, screen in self.screen.items()]
        texts = [(where, text) for where, text in declared if text is not None]
        if not texts:
            return []
        from levada import rules  # its parser takes more memory than all else here

        problems = []
        for where, text in texts:
            try:
                rules.parse(text, self.types)
            except rules.RuleError as error:
                problems.append(f"{where} {error}")
        return problems

    def _bad_event_time(self) -> list[str]:
        if self.event_time is None:
            return []
        problems = self._unknown("eventTime", self.event_time)
        field = self.fields.get(self.event_time)
        if field is not None and (field.type != "timestamp" or not field.required):
            problems.append(f"eventTime: `{self.event_time}` must be a required field of type timestamp")
        return problems

    def _bad_rates(self) -> list[str]:
        rates = {name: screen.rate for name, screen in self.screen.items() if screen.rate is not None}
        return [each for name, rate in rates.items() for each in self._unknown(f"screen.{name}.rate.field", rate.field)]

    def _unknown(self, where: str, name: str) -> list[str]:
        if name in self.fields:
            return []
        near = difflib.get_close_matches(name, self.fields, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"declared are {', '.join(self.fields)}"
        return [f"{where} names the field `{name}`, which is not declared: {hint}"]

    def _bad_model(self, model: Model) -> list[str]:
        problems = self._unknown("model.label", model.label)
        label = self.fields.get(model.label)
        if label is not None and model.gate.regression and label.type not in ("long", "double"):
            problems.append(f"model.label `{model.label}` is a {label.type}; a regression predicts a long or a double")
        if label is not None and not model.gate.regression and label.type not in ("string", "long", "boolean"):
            problems.append(
                f"model.label `{model.label}` is a {label.type}; a class is a string, long or boolean "
                "(a number is predicted with gate.metric rmse or r2)"
            )
        for feature in model.features or ():
            problems += self._unknown("model.features", feature)
            if feature == model.label:
                problems.append(f"model.features holds the label `{feature}`; take it out")
            if feature == self.key:
                problems.append(f"model.features holds the key `{feature}`, which tells rows apart; take it out")
            if feature in self.fields and self.fields[feature].type == "timestamp":
                problems.append(f"model.features: `{feature}` is a timestamp, which no trainer takes")
        if model.split.field is not None:
            problems += self._unknown("model.split.field", model.split.field)
        for name in model.gate.slices:
            problems += self._unknown("model.gate.slices", name)
            if name in self.fields and self.fields[name].type not in ("string", "long", "boolean"):
                problems.append(f"model.gate.slices: `{name}` is a {self.fields[name].type}, which has no slices")
            if name in self.sensitive or name == self.key:
                problems.append(f"model.gate.slices: `{name}` is sensitive or the key, which the gate does not read")
        for used in {model.label, *(model.features or ())} & self.sensitive:
            problems.append(f"model: `{used}` is sensitive; no model is trained on a digest")
        if self.logs:
            problems += [
                f"fields.{name}: logged predictions have a column of this name; give the field another, or set "
                "serving.logged to 0"
                for name in (MODEL_VERSION, MODEL_SCORE)
                if name in self.fields
            ]
        if not problems and not self.features:
            problems.append("model has no features: every field is the label, the key, sensitive or a timestamp")
        return problems

    @property
    def features(self) -> tuple[str, ...]:
        """The fields a model sees, in declared order; empty without a model."""
        if self.model is None:
            return ()
        if self.model.features is not None:
            return self.model.features
        hidden = {self.model.label, self.key} | self.sensitive
        return tuple(name for name, field in self.fields.items() if name not in hidden and field.type != "timestamp")

    @property
    def logs(self) -> bool:
        """Whether there is a predictor whose predictions are kept."""
        return self.model is not None and self.serving.enabled and self.serving.logged > 0


class Pipeline(Declaration):
    """A declared pipeline with its name."""

    name: Annotated[str, Property(pattern=PIPELINE_NAME)]
    """DNS label of at most 40 characters."""

    @property
    def topic_name(self) -> str:
        """Kafka topic of the events."""
        return self.name

    @property
    def dead_topic(self) -> str:
        """Kafka topic of the events that were refused after the collector."""
        return f"{self.name}.dead"

    @property
    def review_topic(self) -> str:
        """Kafka topic of the events that a screen found suspicious."""
        return f"{self.name}.review"

    @property
    def table(self) -> tuple[str, str]:
        """Iceberg namespace and table of the events."""
        return ("events", self.name.replace("-", "_"))

    @property
    def predictions(self) -> Predictions | None:
        """The stream of what the pipeline's predictor says; None where nothing is kept of it."""
        if self.model is None or not self.logs:
            return None
        said = "double" if self.model.gate.regression else self.fields[self.model.label].type
        # Nothing is required, and no rule holds: what was asked and said is a fact, of whichever version.
        fields = {name: Field(type=self.fields[name].type, required=False) for name in self.features}
        fields |= {
            self.model.label: Field(type=said, required=False),
            MODEL_VERSION: Field(type="string"),
            MODEL_SCORE: Field(type="double", required=False),
        }
        return Predictions(
            name=self.name + _PREDICTIONS,
            enabled=self.enabled,
            fields=fields,
            topic=self.topic,
            stream=self.stream.model_copy(update={"replicas": 1}),
            lake=self.lake,
        )

    @property
    def streams(self) -> tuple[Pipeline, ...]:
        """What a sink carries to the lake: the events, and the predictions where they are kept."""
        predictions = self.predictions
        return (self,) if predictions is None else (self, predictions)


class Predictions(Pipeline):
    """The stream ``<pipeline>.predictions``, which is derived and has what every stream has: topic, letters, table.

    Its fields are the features, the label's field with what was predicted, the version, and the score.
    """

    name: str
    """As its topic; no pipeline has a dot in its name."""

    @property
    def table(self) -> tuple[str, str]:
        """Iceberg namespace and table of the predictions."""
        return ("predictions", self.name.removesuffix(_PREDICTIONS).replace("-", "_"))


def parse_pipeline(entry: dict[str, Any], name: str, *, rules: bool = True) -> Pipeline:
    """Check one declaration.

    Args:
        entry: as declared.
        name: of the pipeline.
        rules: whether rules are checked as well; a process that applies none has no need for their parser.

    Raises:
        PipelineError: with one line for every problem, each naming its field.
    """
    try:
        return Pipeline.model_validate({"name": name, **entry}, context=None if rules else _RULES_UNREAD)
    except ValidationError as error:
        raise PipelineError("\n".join(_describe(name, problem) for problem in error.errors())) from error


def _describe(name: str, problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"pipeline {name}: {path} is not a known key: correct its spelling or take it out"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"pipeline {name}: {path}: {message}" if path else f"pipeline {name}: {message}"


def load_pipelines(folder: Path) -> dict[str, Pipeline]:
    """Every pipeline declared in ``folder``, by name; a file a pipeline, ``<name>.json`` or ``<name>.yaml``.

    Raises:
        PipelineError: no such folder, a file that cannot be read or a declaration that cannot be used; all problems at
            once.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is no folder: LEVADA_PIPELINES must name the one with the declarations")
    pipelines, problems = {}, []
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.yaml")):
        try:
            pipelines[path.stem] = _load(path)
        except PipelineError as error:
            problems.append(str(error))
    if problems:
        raise PipelineError("\n".join(problems))
    return pipelines


def load_pipeline(folder: Path, name: str, *, rules: bool = True) -> Pipeline:
    """The pipeline ``name`` declared in ``folder``, with its rules checked unless ``rules`` is false.

    Raises:
        PipelineError: there is none, or it cannot be used.
    """
    if (path := declared_file(folder, name)) is not None:
        return _load(path, rules=rules)
    raise PipelineError(f"pipeline {name}: not declared; declared are {', '.join(declared_names(folder)) or 'none'}")


def load_stream(folder: Path, name: str) -> Pipeline:
    """A pipeline's events by its name, or its predictions by ``<pipeline>.predictions``.

    Raises:
        PipelineError: there is no such pipeline, or nothing of its predictions is kept.
    """
    pipeline = load_pipeline(folder, name.removesuffix(_PREDICTIONS))
    for stream in pipeline.streams:
        if stream.name == name:
            return stream
    raise PipelineError(f"pipeline {pipeline.name}: no prediction is kept: declare a model, and serving.logged above 0")


def declared_file(folder: Path, name: str) -> Path | None:
    """Where the pipeline ``name`` is declared in ``folder``, if it is."""
    paths = (folder / f"{name}.{suffix}" for suffix in ("json", "yaml"))
    return next((path for path in paths if path.is_file()), None)


def declared_names(folder: Path) -> list[str]:
    """Names of the pipelines that have a file in ``folder``, usable or not."""
    return sorted(path.stem for path in folder.glob("*") if path.suffix in (".json", ".yaml"))


def _load(path: Path, *, rules: bool = True) -> Pipeline:
    try:
        text = path.read_text()
        entry = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PipelineError(f"pipeline {path.stem}: {path} cannot be read: {error}") from error
    if not isinstance(entry, dict):
        raise PipelineError(f"pipeline {path.stem}: {path} must hold a mapping")
    return parse_pipeline(entry, path.stem, rules=rules)
