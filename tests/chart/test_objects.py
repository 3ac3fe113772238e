"""The chart renders exactly these objects, with exactly these rights."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from .cases import EXTERNAL, KNOBS, PLANTS, feature
from .policy import Pod, pods, sources
from .render import CHART, Manifest, Release, render

DEFAULTS = """
ConfigMap: airflow credentials kafka mlflow pipelines postgres prometheus trainer
CronJob: stores topics
Deployment: airflow-api airflow-dag-processor airflow-scheduler collector mlflow
Job: airflow-migrate credentials mlflow-migrate stores topics
Pod: test
Role: airflow-scheduler credentials prometheus
RoleBinding: airflow-scheduler credentials prometheus
Service: airflow collector kafka kafka-brokers mlflow postgres prometheus s3
ServiceAccount: airflow-api airflow-dag-processor airflow-migrate airflow-scheduler collector credentials kafka
  maintain mlflow mlflow-migrate postgres predictor prometheus s3 sink stores topics trainer
StatefulSet: kafka postgres prometheus s3
"""
# What a pipeline with a model adds.
PIPELINE = """
CronJob: maintain-plants
Deployment: predictor-plants sink-plants
Service: predictor-plants
"""


def listed(text: str) -> set[str]:
    """Kind and name of each object in a list such as those above."""
    lines = text.replace("\n  ", " ").split("\n")
    return {f"{kind} {name}" for kind, _, names in (line.partition(":") for line in lines) for name in names.split()}


def rendered(release: Release) -> set[str]:
    """Kind and name of each object, without the release's name and the hash of a Job."""
    return {f"{each['kind']} {_name(each)}" for each in release.objects}


def _name(manifest: Manifest) -> str:
    name = str(manifest["metadata"]["name"]).removeprefix("levada-")
    return re.sub(r"-[0-9a-f]{10}$", "", name) if manifest["kind"] == "Job" else name


def test_the_defaults_render_exactly_these_objects() -> None:
    assert rendered(render()) == listed(DEFAULTS)


def test_a_pipeline_adds_exactly_these_objects() -> None:
    assert rendered(feature("a pipeline")) - rendered(render()) == listed(PIPELINE)


def test_an_autoscaler_owns_the_replicas_of_a_predictor_that_may_have_more() -> None:
    release = feature("predictor scaled")
    added = {"HorizontalPodAutoscaler predictor-plants", "PodDisruptionBudget predictor-plants"}
    assert rendered(release) - rendered(feature("a pipeline")) == added
    (scaler,) = release.kind("HorizontalPodAutoscaler")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "levada-predictor-plants"}
    cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    metrics = [{"type": "Resource", "resource": cpu}]
    assert scaler["spec"] == {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 4, "metrics": metrics}
    assert "replicas" not in release.find("Deployment", "levada-predictor-plants")["spec"]
    plants = {**PLANTS, "serving": {"replicas": 3, "maxReplicas": 2}}
    fixed = render(values={"global": {"pipelines": {"plants": plants}}})
    assert fixed.kind("HorizontalPodAutoscaler") == []
    assert fixed.find("Deployment", "levada-predictor-plants")["spec"]["replicas"] == 3


def test_an_autoscaler_goes_by_requests_in_flight_where_it_is_told_how_many() -> None:
    (scaler,) = feature("predictor scaled by requests").kind("HorizontalPodAutoscaler")
    target = {"type": "AverageValue", "averageValue": "0.5"}
    pods = {"metric": {"name": "levada_predict_in_flight"}, "target": target}
    assert scaler["spec"]["metrics"] == [{"type": "Pods", "pods": pods}]


def test_predictions_need_a_key_unless_told_otherwise() -> None:
    for name, keys, volume in (
        ("a pipeline", "/etc/levada/credentials/api-keys/keys.json", {"emptyDir": {"sizeLimit": "1Gi"}}),
        ("predictor open, models kept", None, {"persistentVolumeClaim": {"claimName": "models"}}),
    ):
        (pod,) = (each for each in pods(feature(name)) if each.component == "predictor")
        assert variables(pod).get("LEVADA_PREDICTOR__API_KEYS_FILE") == keys
        secrets = {secret for kind, secret, _ in sources(pod) if kind == "secret"}
        assert secrets == {"levada-gate", "levada-kafka-predictor", *(["levada-predictor-keys"] if keys else [])}
        assert {"name": "cache", **volume} in pod.spec["volumes"]
        made = json.loads(feature(name).find("ConfigMap", "levada-credentials")["data"]["spec.json"])
        assert ("levada-predictor-keys" in made) is (keys is not None)


def test_a_predictor_has_the_time_to_answer_and_to_deliver_what_it_answered() -> None:
    (pod,) = (each for each in pods(feature("a pipeline")) if each.component == "predictor")
    (container,) = pod.spec["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    # It drains for a second or two, answers for up to 15, and delivers for up to 12.
    assert pod.spec["terminationGracePeriodSeconds"] > before + 2 + 15 + 12


def test_only_who_logs_predictions_may_write_to_kafka() -> None:
    def predictor(logged: float) -> Pod:
        plants = {**PLANTS, "serving": {"logged": logged}}
        release = render(values={"global": {"pipelines": {"plants": plants}}})
        (pod,) = (each for each in pods(release) if each.component == "predictor")
        return pod

    for logged, there in ((0.01, True), (1, True), (0, False)):
        pod = predictor(logged)
        assert ("LEVADA_KAFKA__BOOTSTRAP" in variables(pod)) is there
        assert ("levada-kafka-predictor" in {secret for _, secret, _ in sources(pod)}) is there


def test_the_order_page_adds_exactly_these_objects() -> None:
    page = "CronJob: maintain-orders\nDeployment: orders sink-orders\nService: orders\nServiceAccount: orders"
    assert rendered(feature("the order page")) - rendered(feature("a pipeline")) == listed(page)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("pipeline off", PIPELINE),
        ("sink off", "CronJob: maintain-plants\nDeployment: sink-plants"),
        ("predictor off", "Deployment: predictor-plants\nService: predictor-plants"),
        ("model off", ""),  # no more training; what was promoted is still served
        ("external kafka", "ConfigMap: kafka\nService: kafka kafka-brokers\nServiceAccount: kafka\nStatefulSet: kafka"),
        ("external s3", "Service: s3\nServiceAccount: s3\nStatefulSet: s3"),
        (
            "external postgres",
            "ConfigMap: postgres\nService: postgres\nServiceAccount: postgres\nStatefulSet: postgres",
        ),
        (
            "external mlflow",
            "ConfigMap: mlflow\nDeployment: mlflow\nJob: mlflow-migrate\nService: mlflow\n"
            "ServiceAccount: mlflow mlflow-migrate",
        ),
        (
            "no credentials Job",
            "ConfigMap: credentials\nJob: credentials\nRole: credentials\nRoleBinding: credentials\n"
            "ServiceAccount: credentials",
        ),
    ],
)
def test_switching_something_off_takes_exactly_this_away(name: str, gone: str) -> None:
    assert rendered(feature("a pipeline")) - rendered(feature(name)) == listed(gone)
    assert rendered(feature(name)) - rendered(feature("a pipeline")) == set()


@pytest.mark.row(63, part="the roles")
def test_roles_grant_exactly_this() -> None:
    release = feature("a pipeline")
    granted = {_name(role): _rules(role) for role in release.kind("Role")}
    spec = json.loads(release.find("ConfigMap", "levada-credentials")["data"]["spec.json"])
    assert granted == {
        # Follows the pods of training tasks.
        "airflow-scheduler": {
            "pods: create, delete, get, list, patch, watch",
            "pods/log: get",
            "events: get, list, watch",
        },
        # Cannot read a Secret that it does not make.
        "credentials": {"secrets: create", f"secrets ({', '.join(sorted(spec))}): get, patch"},
        "prometheus": {"pods: get, list, watch"},
    }


@pytest.mark.row(63, part="the roles")
def test_each_role_is_granted_to_the_one_account_of_its_name() -> None:
    release = feature("a pipeline")
    assert len(release.kind("RoleBinding")) == len(release.kind("Role"))
    for binding in release.kind("RoleBinding"):
        name = binding["metadata"]["name"]
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "levada"}]


def _rules(role: Manifest) -> set[str]:
    found = set()
    for rule in role["rules"]:
        assert rule["apiGroups"] == [""]
        names = f" ({', '.join(sorted(rule['resourceNames']))})" if "resourceNames" in rule else ""
        found |= {f"{resource}{names}: {', '.join(sorted(rule['verbs']))}" for resource in rule["resources"]}
    return found


def test_no_account_is_shared_but_among_the_pods_of_one_part() -> None:
    users: dict[str, set[str]] = {}
    for pod in pods(feature("two pipelines")):
        users.setdefault(pod.spec["serviceAccountName"], set()).add(pod.component)
    assert {account: parts for account, parts in users.items() if len(parts) > 1} == {}


def test_every_workload_takes_every_knob() -> None:
    for pod in pods(feature("knobs")):
        if pod.component == "test":  # helm test's own
            continue
        for key in ("nodeSelector", "tolerations", "affinity"):
            assert pod.spec[key] == KNOBS[key], f"{pod}: {key}"
        for key in ("annotations", "labels"):
            assert KNOBS[key].items() <= pod.metadata[key].items(), f"{pod}: {key}"
        main = pod.spec["containers"][0]
        env = {variable["name"]: variable.get("value") for variable in main["env"]}
        assert KNOBS["extraEnv"].items() <= env.items(), f"{pod}: extraEnv"
        assert {"name": "extra-mine", "mountPath": "/mine"} in main["volumeMounts"], f"{pod}: extraVolumes"
        account = feature("knobs").find("ServiceAccount", pod.spec["serviceAccountName"])
        assert account["metadata"]["annotations"] == KNOBS["serviceAccount"]["annotations"], f"{pod}: serviceAccount"


@pytest.mark.parametrize("way", ["ingress", "routes"])
def test_every_user_facing_service_takes_a_way_in(way: str) -> None:
    release = feature(way)
    hosts: dict[str, str] = {}
    for route in release.kind("Ingress", "HTTPRoute"):
        spec = route["spec"]
        if route["kind"] == "Ingress":
            (host,) = (entry["host"] for entry in spec["rules"])
            assert spec["tls"] == [{"hosts": [host], "secretName": "certificate"}]
            assert spec["ingressClassName"] == "web"
        else:
            (host,) = spec["hostnames"]
            assert spec["parentRefs"] == [{"name": "web", "namespace": "edge", "sectionName": "https"}]
        hosts[_name(route)] = host
    everything = dict.fromkeys(("airflow", "collector", "mlflow", "orders", "prometheus"), "example.com")
    assert hosts == {**everything, "predictor-plants": "plants.example.com"}


def test_an_external_dependency_reaches_all_who_need_it() -> None:
    release = feature("everything external")
    assert {each["metadata"]["name"] for each in release.kind("StatefulSet")} == {"levada-prometheus"}
    text = release.text
    for bundled in ("levada-kafka", "levada-postgres:", "levada-postgres ", "levada-s3", "http://levada-mlflow"):
        assert bundled not in text, bundled
    for pod in pods(release):
        env = variables(pod)
        for name, value in {
            "LEVADA_KAFKA__BOOTSTRAP": EXTERNAL["kafka"]["bootstrap"],
            "LEVADA_KAFKA__PROTOCOL": "SASL_SSL",
            "LEVADA_POSTGRES__HOST": "db.example.com",
            "LEVADA_POSTGRES__SSLMODE": "verify-full",
            "LEVADA_S3__REGION": "ap-northeast-2",
            "LEVADA_S3__PATH_STYLE": "false",
            "LEVADA_MLFLOW__URI": "https://mlflow.example.com",
        }.items():
            assert env.get(name, value) == value, f"{pod}: {name}"
        # Without keys the SDK finds a role by itself.
        assert not env.keys() & {"LEVADA_S3__ENDPOINT", "LEVADA_S3__CREDENTIALS"}, str(pod)


def variables(pod: Pod) -> dict[str, Any]:
    """Environment of all containers of a pod, where it is given as text."""
    return {each["name"]: each["value"] for one in pod.containers for each in one.get("env", ()) if "value" in each}


def test_given_secrets_are_used_and_none_is_made() -> None:
    release = feature("the order page, own secrets")
    assert "Job credentials" not in rendered(release)
    read = {name for pod in pods(release) for kind, name, _ in sources(pod) if kind == "secret"}
    assert read == {"made-before"}


@pytest.mark.parametrize("name", ["a pipeline", "the order page"])
def test_secrets_that_are_not_given_are_made(name: str) -> None:
    release = feature(name)
    spec = json.loads(release.find("ConfigMap", "levada-credentials")["data"]["spec.json"])
    read = {name for pod in pods(release) for kind, name, _ in sources(pod) if kind == "secret"}
    assert read <= spec.keys()
    # The clear key is for the clients.
    assert spec.keys() - read <= {"levada-api-key", "levada-kafka-metrics"}


def test_prometheus_reads_airflow_at_the_path_of_its_plugin() -> None:
    release = feature("a pipeline")
    paths = {pod.component: pod.metadata.get("annotations", {}).get("prometheus.io/path") for pod in pods(release)}
    assert {component: path for component, path in paths.items() if path} == {"airflow-api": "/levada/metrics"}
    config = yaml.safe_load(release.find("ConfigMap", "levada-prometheus")["data"]["prometheus.yml"])
    relabeled = {each.get("target_label"): each for each in config["scrape_configs"][0]["relabel_configs"]}
    assert relabeled["__metrics_path__"]["source_labels"] == ["__meta_kubernetes_pod_annotation_prometheus_io_path"]


def test_prometheus_evaluates_the_alerts_as_they_are_written() -> None:
    data = feature("a pipeline").find("ConfigMap", "levada-prometheus")["data"]
    assert yaml.safe_load(data["prometheus.yml"])["rule_files"] == ["alerts.yml"]
    written = CHART / "charts" / "observability" / "files" / "alerts.yml"
    assert yaml.safe_load(data["alerts.yml"]) == yaml.safe_load(written.read_text())


def test_each_sink_of_a_pipeline_knows_which_it_is() -> None:
    """One Deployment each, under names and selectors that no other sink has, and one budget for all."""
    values = {"plants": {**PLANTS, "stream": {"replicas": 3}}, "plants-1": PLANTS}
    release = render(values={"global": {"pipelines": values}})
    sinks = {
        each["metadata"]["name"]: each
        for each in release.kind("Deployment")
        if each["metadata"]["labels"]["app.kubernetes.io/component"] == "sink"
    }
    assert set(sinks) == {"levada-sink-plants", "levada-sink1-plants", "levada-sink2-plants", "levada-sink-plants-1"}
    selectors = {str(sorted(each["spec"]["selector"]["matchLabels"].items())) for each in sinks.values()}
    assert len(selectors) == len(sinks)
    for name, index in (("levada-sink-plants", "0"), ("levada-sink2-plants", "2"), ("levada-sink-plants-1", "0")):
        template = sinks[name]["spec"]["template"]
        assert template["metadata"]["labels"]["levada.io/sink"] == index
        (container,) = template["spec"]["containers"]
        assert {"name": "LEVADA_SINK__INDEX", "value": index} in container["env"]
    budgets = {each["metadata"]["name"] for each in release.kind("PodDisruptionBudget")}
    assert "levada-sink-plants" in budgets
    assert "levada-sink-plants-1" not in budgets


def test_the_name_of_an_upkeep_fits_whatever_the_pipeline_is_called() -> None:
    release = render(values={"global": {"pipelines": {"a" * 40: PLANTS}}}, release="r" * 30)
    found = [each["metadata"]["name"] for each in release.kind("CronJob")]
    assert len(found) == len(set(found))
    assert max(map(len, found)) <= 52
