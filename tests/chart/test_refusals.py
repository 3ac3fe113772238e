"""Wrong values are refused before anything reaches a cluster, with the key's name and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from levada.values.chart import merge

from .cases import EXTERNAL, ORDER_PAGE, PIPELINES
from .render import RenderError, render


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize(
    "path",
    [
        "globall",
        "global.kafkaa",
        "global.pipelines.plants.topic.partition",
        "ingest.collector.replica",
        "ingest.collector.httpRoute.gateway.names",
        "batch.airflow.scheduler.resources.requests.memry",
        "stores.postgres.exporter.images",
    ],
)
def test_a_misspelt_key_is_refused_by_name(path: str, helm: str) -> None:
    values: Any = 1
    for step in reversed(path.split(".")):
        values = {step: values}
    with pytest.raises(RenderError, match=rf"(?s)additional propert.*'{path.split('.')[-1]}'"):
        render(values=merge(PIPELINES, values), helm=helm)


@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_a_pipeline_of_wrong_types_is_refused_by_path(helm: str) -> None:
    wrong = {"global": {"pipelines": {"plants": {"topic": {"partitions": "three"}, "stream": {"engine": "fast"}}}}}
    with pytest.raises(RenderError) as refused:
        render(values=merge(PIPELINES, wrong), helm=helm)
    for path in ("topic/partitions", "stream/engine"):
        assert f"/global/pipelines/plants/{path}" in str(refused.value)


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize("wrong", [-1, "many", 10_001])
def test_a_number_of_requests_in_flight_that_cannot_be_is_refused_by_path(wrong: object, helm: str) -> None:
    with pytest.raises(RenderError, match="/serving/predictor/targetInFlight"):
        render(values=merge(PIPELINES, {"serving": {"predictor": {"targetInFlight": wrong}}}), helm=helm)


OFF = {"enabled": False}


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        (
            {"global": {"kafka": {"external": True}}},
            [
                "global.kafka.bootstrap is empty",
                *(
                    f"global.kafka.users.{user}.existingSecret is empty"
                    for user in ("admin", "collector", "metrics", "predictor", "sink")
                ),
            ],
        ),
        (
            {"global": {"postgres": {"external": True}}},
            [
                "global.postgres.host is empty",
                *(
                    f"global.postgres.databases.{role}.existingSecret is empty"
                    for role in ("airflow", "lake", "mlflow")
                ),
            ],
        ),
        ({"global": {"mlflow": {"external": True}}}, ["global.mlflow.uri is empty"]),
        ({"ingest": OFF}, ["ingest.kafka is switched off"]),
        ({"ingest": {"kafka": OFF}}, ["ingest.kafka is switched off"]),
        ({"stores": OFF}, ["stores.postgres is switched off", "stores.s3 is switched off"]),
        ({"stores": {"s3": OFF}}, ["stores.s3 is switched off"]),
        ({"registry": OFF}, ["registry.mlflow is switched off"]),
        ({"credentials": OFF}, ["credentials is switched off"]),
        ({"ingest": {"collector": {"ingress": {"enabled": True}}}}, ["ingest.collector.ingress.host is empty"]),
        (
            {"ingest": {"orders": {"enabled": True}, "collector": OFF}},
            ["ingest.orders is switched on and ingest.collector off", "ingest.orders is switched on without"],
        ),
        (
            merge(ORDER_PAGE, {"ingest": {"collector": {"existingSecret": "mine"}}}),
            ["ingest.orders.existingSecret is empty"],
        ),
        (
            {"serving": {"predictor": {"httpRoute": {"enabled": True}}}},
            ["serving.predictor.httpRoute.host is empty", "serving.predictor.httpRoute.gateway.name is empty"],
        ),
        (
            {"ingest": {"kafka": OFF}, "stores": OFF, "registry": {"mlflow": OFF}},
            ["ingest.kafka", "stores.postgres", "stores.s3", "registry.mlflow"],
        ),
    ],
)
def test_what_does_not_go_together_is_refused_all_at_once(values: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(RenderError) as refused:
        render(values=merge(PIPELINES, values))
    lines = str(refused.value).split("go together:\n", 1)[1].split("\n\n")[0].strip().splitlines()
    assert len(lines) == len(messages)
    for message in messages:
        assert any(line.startswith(message) for line in lines), message


@pytest.mark.parametrize("room", ["ingest", "stores", "registry"])
def test_a_room_is_replaced_by_something_external(room: str) -> None:
    """What a check refuses is accepted once the dependency is described."""
    values: dict[str, Any] = {room: OFF}
    if room == "ingest":
        values["global"] = {"kafka": EXTERNAL["kafka"]}
    elif room == "stores":
        values["global"] = {"postgres": EXTERNAL["postgres"], "s3": EXTERNAL["s3"]}
    else:
        values["global"] = {"mlflow": EXTERNAL["mlflow"]}
    assert render(values=merge(PIPELINES, values)).objects
