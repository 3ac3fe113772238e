"""Kafka as one broker, as three, and as three beside controllers of their own."""

from __future__ import annotations

import re

import pytest

from levada.values.chart import merge

from .cases import EXTERNAL, PIPELINES, feature
from .policy import Pod, pods
from .render import Manifest, Release, RenderError, render
from .test_objects import rendered

LAYOUTS = {"a pipeline": (1, 0), "three brokers": (3, 0), "separate controllers": (3, 3)}
THREE = {"ingest": {"kafka": {"replicas": 3}}}


def stateful(release: Release, name: str = "levada-kafka") -> Manifest:
    return release.find("StatefulSet", name)


def pod(release: Release, component: str = "kafka") -> Pod:
    return next(each for each in pods(release) if each.component == component)


def settings(release: Release, name: str = "levada-kafka") -> dict[str, str]:
    text = release.find("ConfigMap", name)["data"]["server.properties"]
    return dict(line.split("=", 1) for line in text.splitlines())


def prepared(release: Release, component: str = "kafka") -> dict[str, list[str]]:
    """The options of the container that prepares a node."""
    options: dict[str, list[str]] = {}
    for word in pod(release, component).spec["initContainers"][0]["command"][3:]:
        name, _, value = word.removeprefix("--").partition("=")
        options.setdefault(name, []).append(value)
    return options


def test_three_brokers_add_exactly_a_budget() -> None:
    assert rendered(feature("three brokers")) - rendered(feature("a pipeline")) == {"PodDisruptionBudget kafka"}
    assert rendered(feature("a pipeline")) - rendered(feature("three brokers")) == set()


def test_controllers_of_their_own_add_exactly_these_objects() -> None:
    assert rendered(feature("separate controllers")) - rendered(feature("three brokers")) == {
        "ConfigMap kafka-controller",
        "PodDisruptionBudget kafka-controller",
        "Service kafka-controllers",
        "ServiceAccount kafka-controller",
        "StatefulSet kafka-controller",
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_copy_of_a_topic_is_on_a_broker_of_its_own(name: str) -> None:
    brokers, controllers = LAYOUTS[name]
    release = feature(name)
    assert stateful(release)["spec"]["replicas"] == brokers
    in_sync = str(max(1, brokers - 1))
    for config in ("levada-kafka", "levada-kafka-controller")[: 2 if controllers else 1]:
        found = settings(release, config)
        for setting in (
            "default.replication.factor",
            "offsets.topic.replication.factor",
            "transaction.state.log.replication.factor",
            "share.coordinator.state.topic.replication.factor",
        ):
            assert found[setting] == str(brokers), setting
        for setting in (
            "min.insync.replicas",
            "transaction.state.log.min.isr",
            "share.coordinator.state.topic.min.isr",
        ):
            assert found[setting] == in_sync, setting
        assert found["auto.create.topics.enable"] == found["allow.everyone.if.no.acl.found"] == "false"
        assert found["message.max.bytes"] == "10485760"
    topics = pod(release, "topics")
    env = {each["name"]: each.get("value") for each in topics.spec["containers"][0]["env"]}
    assert env["LEVADA_KAFKA__REPLICATION_FACTOR"] == str(brokers)


def test_an_external_kafka_says_itself_how_many_copies_it_keeps() -> None:
    values = {"global": {"kafka": {"replicationFactor": 2}}}
    release = render(values=merge(merge(PIPELINES, values), {"global": {"kafka": EXTERNAL["kafka"]}}))
    env = {each["name"]: each.get("value") for each in pod(release, "topics").spec["containers"][0]["env"]}
    assert env["LEVADA_KAFKA__REPLICATION_FACTOR"] == "2"


def test_roles_and_listeners() -> None:
    assert settings(feature("three brokers"))["process.roles"] == "broker,controller"
    release = feature("separate controllers")
    broker, controller = settings(release), settings(release, "levada-kafka-controller")
    assert (broker["process.roles"], controller["process.roles"]) == ("broker", "controller")
    assert broker["listeners"] == "CLIENT://:9092,INTERNAL://:9094"
    assert controller["listeners"] == "CONTROLLER://:9093"
    voters = [f"levada-kafka-controller-{n}.levada-kafka-controllers.levada.svc:9093" for n in range(3)]
    assert broker["controller.quorum.bootstrap.servers"] == ",".join(voters)
    assert controller["controller.quorum.bootstrap.servers"] == ",".join(voters)


@pytest.mark.parametrize(
    ("name", "component", "voters"),
    [
        ("a pipeline", "kafka", ["levada-kafka-0.levada-kafka-brokers.levada.svc:9404"]),
        ("three brokers", "kafka", [f"levada-kafka-{n}.levada-kafka-brokers.levada.svc:9404" for n in range(3)]),
        ("separate controllers", "kafka", []),
        (
            "separate controllers",
            "kafka-controller",
            [f"levada-kafka-controller-{n}.levada-kafka-controllers.levada.svc:9404" for n in range(3)],
        ),
    ],
)
def test_only_voters_are_told_of_the_quorum(name: str, component: str, voters: list[str]) -> None:
    assert prepared(feature(name), component).get("voter", []) == voters


def test_nodes_of_two_kinds_never_share_a_number() -> None:
    release = feature("separate controllers")
    assert prepared(release)["node"] == ["$(NODE)"]
    assert prepared(release, "kafka-controller")["node"] == ["10$(NODE)"]


def test_a_quorum_starts_together_and_a_single_broker_as_it_always_did() -> None:
    assert "podManagementPolicy" not in stateful(feature("a pipeline"))["spec"]
    for name in ("levada-kafka", "levada-kafka-controller"):
        assert stateful(feature("separate controllers"), name)["spec"]["podManagementPolicy"] == "Parallel"


def test_each_layout_is_a_cluster_of_its_own_and_cannot_become_another() -> None:
    """Kubernetes refuses the change of a StatefulSet, and Kafka a disk with another cluster's id."""
    ids = {prepared(feature(name))["cluster-id"][0] for name in LAYOUTS}
    assert len(ids) == len(LAYOUTS)
    assert all(re.fullmatch("[A-Za-z0-9_-]{21}[AQgw]", each) for each in ids)
    # What was formatted before there was a choice.
    assert prepared(feature("a pipeline"))["cluster-id"] == ["0ad8c3b69cdf9689a4484A"]
    changeable = ("replicas", "template", "updateStrategy")
    fixed = [
        {key: value for key, value in stateful(feature(name))["spec"].items() if key not in changeable}
        for name in LAYOUTS
    ]
    assert all(one != other for index, one in enumerate(fixed) for other in fixed[:index])
    own = render(values=merge(PIPELINES, {"ingest": {"kafka": {"clusterId": "a" * 21 + "Q"}}}))
    assert prepared(own)["cluster-id"] == ["a" * 21 + "Q"]


@pytest.mark.row(64, part="Kafka")
@pytest.mark.parametrize("component", ["kafka", "kafka-controller"])
def test_three_nodes_are_apart_and_drained_one_at_a_time(component: str) -> None:
    name = f"levada-{component}"
    release = feature("separate controllers")
    budget = release.find("PodDisruptionBudget", name)["spec"]
    assert budget["maxUnavailable"] == 1
    labels = budget["selector"]["matchLabels"]
    spec = pod(release, component).spec
    (term,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"] == {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": labels},
    }
    spread = {each["topologyKey"]: each["whenUnsatisfiable"] for each in spec["topologySpreadConstraints"]}
    assert spread == dict.fromkeys(("topology.kubernetes.io/zone", "kubernetes.io/hostname"), "ScheduleAnyway")


@pytest.mark.row(64, part="Kafka")
def test_in_the_profile_ha_no_two_nodes_share_a_machine_nor_a_zone() -> None:
    release = render("production", "profiles/ha", "regions/ap-northeast-2")
    for component in ("kafka", "kafka-controller"):
        spec = pod(release, component).spec
        assert spec["affinity"]["podAntiAffinity"].keys() == {"requiredDuringSchedulingIgnoredDuringExecution"}
        assert "nodeAffinity" in spec["affinity"]
        spread = {each["topologyKey"]: each["whenUnsatisfiable"] for each in spec["topologySpreadConstraints"]}
        assert spread["topology.kubernetes.io/zone"] == "DoNotSchedule"
    # Without names there may be no zones: then nothing could be scheduled.
    spec = pod(render("production", "profiles/ha")).spec
    assert all(each["whenUnsatisfiable"] == "ScheduleAnyway" for each in spec["topologySpreadConstraints"])


def test_a_single_broker_is_neither_guarded_nor_kept_apart() -> None:
    assert "affinity" not in pod(feature("a pipeline")).spec
    assert feature("a pipeline").kind("PodDisruptionBudget") == []


@pytest.mark.parametrize(
    ("profile", "expected"), [("nano", (1, 0)), ("small", (1, 0)), ("prod", (3, 0)), ("ha", (3, 3))]
)
def test_profiles(profile: str, expected: tuple[int, int]) -> None:
    release = render("production", f"profiles/{profile}")
    found = {each["metadata"]["name"]: each["spec"]["replicas"] for each in release.kind("StatefulSet")}
    assert (found["levada-kafka"], found.get("levada-kafka-controller", 0)) == expected


def test_a_broker_has_time_to_hand_over_and_is_ready_when_it_has_caught_up() -> None:
    spec = pod(feature("three brokers")).spec
    assert spec["terminationGracePeriodSeconds"] == 120
    broker, watcher = spec["containers"]
    assert broker["readinessProbe"]["tcpSocket"] == {"port": "client"}
    assert watcher["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "in-sync"}
    assert watcher["command"][3:] == [
        "--node=$(NODE)",
        "--bootstrap=$(POD).levada-kafka-brokers.levada.svc:9092",
    ]
    # The only one has nobody to catch up with.
    assert [each["name"] for each in pod(feature("a pipeline")).spec["containers"]] == ["kafka"]


def test_the_zone_is_the_pods_own_label_or_what_is_said() -> None:
    containers = pod(feature("three brokers")).spec["initContainers"]
    (zone,) = (each for each in containers[0]["env"] if each["name"] == "ZONE")
    assert zone["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['topology.kubernetes.io/zone']"
    assert prepared(feature("three brokers"))["rack"] == ["$(ZONE)"]
    said = render(values=merge(PIPELINES, merge(THREE, {"ingest": {"kafka": {"racks": {"0": "a", "2": "c"}}}})))
    assert prepared(said)["rack-of"] == ["0=a", "2=c"]


@pytest.mark.parametrize("name", ["three brokers", "kafka by TLS"])
def test_encryption_reaches_all_listeners_and_all_clients(name: str) -> None:
    by_tls = name == "kafka by TLS"
    protocol = "SASL_SSL" if by_tls else "SASL_PLAINTEXT"
    found = settings(feature(name))
    assert set(found["listener.security.protocol.map"].split(",")) == {
        f"{listener}:{protocol}" for listener in ("CLIENT", "INTERNAL", "CONTROLLER")
    }
    assert ("ssl.keystore.key" in found) is by_tls
    for each in pods(feature(name)):
        for container in each.containers:
            env = {variable["name"]: variable.get("value") for variable in container.get("env", ())}
            if "LEVADA_KAFKA__BOOTSTRAP" in env:
                assert env["LEVADA_KAFKA__PROTOCOL"] == protocol, str(each)
                ca = "/etc/levada/credentials/ca/kafka.crt" if by_tls else None
                assert env.get("LEVADA_KAFKA__CA") == ca, str(each)
    mounted = {volume["name"] for volume in pod(feature(name)).spec["volumes"]}
    assert ("kafka-tls" in mounted) is by_tls


def test_controllers_without_three_brokers_are_refused() -> None:
    with pytest.raises(RenderError, match="controllers of their own are for three"):
        render(values=merge(PIPELINES, {"ingest": {"kafka": {"controllers": {"enabled": True}}}}))


@pytest.mark.parametrize("replicas", [0, 2, 5])
def test_other_numbers_of_brokers_are_refused(replicas: int) -> None:
    with pytest.raises(RenderError, match="/ingest/kafka/replicas"):
        render(values=merge(PIPELINES, {"ingest": {"kafka": {"replicas": replicas}}}))
