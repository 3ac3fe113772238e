"""What a change of the values restarts, and what it leaves alone."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest

from levada.values.chart import merge

from .cases import FEATURES, PIPELINES, cases, feature
from .policy import pods, sources
from .render import Release, render

# Read anew when they are needed: a new pipeline restarts none of the shared processes, nor do the trainer's pods.
READ_ANEW = {"levada-pipelines", "levada-trainer"}


def templates(release: Release) -> dict[str, str]:
    """The pod template of everything that runs for ever, as text."""
    return {str(pod): json.dumps([pod.metadata, pod.spec], sort_keys=True) for pod in pods(release) if pod.runs_on}


def restarted(before: Release, after: Release) -> set[str]:
    """What an upgrade from one rendering to the other replaces."""
    old, new = templates(before), templates(after)
    return {name for name in old.keys() & new.keys() if old[name] != new[name]}


def test_a_job_is_named_by_all_it_does() -> None:
    """A changed pod is a new Job, because a Job cannot be changed; an unchanged one is the same Job."""
    does: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for release in cases().values():
        for job in release.kind("Job"):
            what = json.dumps(job["spec"]["template"], sort_keys=True)
            does[job["metadata"]["name"]].add(what)
            names[what].add(job["metadata"]["name"])
    assert {name for name, different in does.items() if len(different) > 1} == set()
    assert [same for same in names.values() if len(same) > 1] == []
    assert len(does) > 10


def test_what_is_repeated_is_what_the_job_did() -> None:
    release = feature("a pipeline")
    for cron in release.kind("CronJob"):
        if cron["metadata"]["labels"]["app.kubernetes.io/component"] == "maintain":
            continue  # upkeep has no first time
        (job,) = (
            each for each in release.kind("Job") if each["metadata"]["name"].startswith(cron["metadata"]["name"] + "-")
        )
        assert cron["spec"]["jobTemplate"]["spec"]["template"] == job["spec"]["template"]


def test_a_changed_config_restarts_its_readers() -> None:
    before = feature("a pipeline")
    for name in FEATURES:
        after = feature(name)
        old, new = (
            {each["metadata"]["name"]: each["data"] for each in one.kind("ConfigMap")} for one in (before, after)
        )
        same = templates(before).keys() & templates(after).keys() - restarted(before, after)
        for pod in (pod for pod in pods(after) if str(pod) in same):
            read = {config for kind, config, _ in sources(pod) if kind == "configMap"} - READ_ANEW
            assert {config for config in read if old[config] != new[config]} == set(), f"{pod}, {name}"


def test_what_is_read_anew_is_mounted_so_that_it_can_change() -> None:
    """A file mounted by subPath never changes."""
    for pod in pods(feature("a pipeline")):
        volumes = {each["name"] for each in pod.spec["volumes"] if each.get("configMap", {}).get("name") in READ_ANEW}
        for container in pod.containers:
            fixed = {mount["name"] for mount in container["volumeMounts"] if "subPath" in mount}
            assert not volumes & fixed, f"{pod}, container {container['name']}"


def test_each_own_setting_of_a_program_restarts_it() -> None:
    expected = {
        "kafka",
        "postgres",
        "airflow-api",
        "airflow-dag-processor",
        "airflow-scheduler",
        "prometheus",
        "mlflow",
    }
    names = {name.split("levada-")[1] for name in restarted(feature("a pipeline"), feature("more settings"))}
    assert names == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"fields": {"height": {"rule": "height > 1"}}},
            {"Deployment levada-sink-plants", "Deployment levada-predictor-plants"},
        ),
        ({"topic": {"partitions": 6}}, {"Deployment levada-sink-plants"}),
        ({"lake": {"dedupeWindow": "1h"}}, {"Deployment levada-sink-plants"}),
        (  # the table of its predictions gets other columns
            {"model": {"label": "height"}},
            {"Deployment levada-sink-plants", "Deployment levada-predictor-plants"},
        ),
        ({"model": {"watch": {"schedule": "@daily", "retrain": True}}}, set()),
        ({"serving": {"logged": 0.5}}, {"Deployment levada-predictor-plants"}),
        ({"serving": {"logged": 0}}, {"Deployment levada-sink-plants", "Deployment levada-predictor-plants"}),
        ({"serving": {"replicas": 2}}, set()),
        ({"serving": {"challenger": "shadow"}}, {"Deployment levada-predictor-plants"}),
    ],
)
def test_a_changed_pipeline_restarts_only_its_own_processes(change: dict[str, Any], expected: set[str]) -> None:
    after = render(values=merge(PIPELINES, {"global": {"pipelines": {"plants": change}}}))
    assert restarted(feature("a pipeline"), after) == expected


def test_a_new_pipeline_restarts_nothing_and_makes_its_topics() -> None:
    before, after = feature("a pipeline"), feature("two pipelines")
    assert restarted(before, after) == set()
    jobs = [{each["metadata"]["name"] for each in one.kind("Job")} for one in (before, after)]
    (new,) = jobs[1] - jobs[0]
    assert new.startswith("levada-topics-")
