"""The rules of the chart, each a function that says what breaks it in one rendering."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from . import openapi
from .render import Manifest, Release

Rule = Callable[[Release], Iterator[str]]
RULES: list[Rule] = []

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
# Kubernetes appends to these: a Job's name and a random suffix to a pod's, a revision's hash to a StatefulSet's label.
LONGEST_NAME = {"CronJob": 52, "StatefulSet": 52}

REPLICATED = ("Deployment", "StatefulSet")
# fmt: off
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}
# fmt: on
# Pods that talk to the API server; all others have no token.
TOKENS = {"credentials", "prometheus", "airflow-scheduler"}
SECRET_WORDS = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|(API|PRIVATE|ACCESS|FERNET)_?KEY)(?!.*FILE$)", re.IGNORECASE)


@dataclass(frozen=True)
class Pod:
    """A pod template, wherever it stands."""

    owner: Manifest
    metadata: dict[str, Any]
    spec: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def component(self) -> str:
        """Value of the component label."""
        return str(self.metadata.get("labels", {}).get("app.kubernetes.io/component"))

    @property
    def runs_on(self) -> bool:
        """Whether the pod is meant to run for ever."""
        return self.owner["kind"] in REPLICATED

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All containers, those that only prepare the pod too."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def rule(check: Rule) -> Rule:
    """Register a rule; it holds for every rendering."""
    RULES.append(check)
    return check


def embedded(release: Release) -> Iterator[tuple[Manifest, Manifest]]:
    """Objects inside ConfigMaps (the trainer's pod), each with the ConfigMap that holds it."""
    for config in release.kind("ConfigMap"):
        for name, text in (config.get("data") or {}).items():
            if name.endswith(".yaml"):
                inner = yaml.safe_load(text)
                if isinstance(inner, dict) and {"apiVersion", "kind"} <= inner.keys():
                    yield config, inner


@cache
def pods(release: Release) -> list[Pod]:
    """Every pod template."""
    found = []
    for manifest in release.objects + [inner for _, inner in embedded(release)]:
        match manifest["kind"]:
            case "Pod":
                found.append(Pod(manifest, manifest["metadata"], manifest["spec"]))
            case "CronJob":
                template = manifest["spec"]["jobTemplate"]["spec"]["template"]
                found.append(Pod(manifest, template["metadata"], template["spec"]))
            case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
                template = manifest["spec"]["template"]
                found.append(Pod(manifest, template["metadata"], template["spec"]))
    return found


def sources(pod: Pod) -> Iterator[tuple[str, str, bool]]:
    """The (kind, name, optional) of each ConfigMap and Secret that a pod reads."""
    entries: list[tuple[str, dict[str, Any]]] = []
    for volume in pod.spec.get("volumes", ()):
        entries += [(kind, volume[kind]) for kind in ("configMap", "secret") if kind in volume]
        for source in volume.get("projected", {}).get("sources", ()):
            entries += [(kind, source[kind]) for kind in ("configMap", "secret") if kind in source]
    for container in pod.containers:
        for variable in container.get("env", ()):
            value = variable.get("valueFrom", {})
            entries += [(key[:-6], value[key]) for key in ("configMapKeyRef", "secretKeyRef") if key in value]
        for source in container.get("envFrom", ()):
            entries += [(key[:-3], source[key]) for key in ("configMapRef", "secretRef") if key in source]
    for kind, entry in entries:
        yield kind, entry.get("name") or entry["secretName"], bool(entry.get("optional"))


# --- every object -----------------------------------------------------------------------------------------------


@rule
def kubernetes_knows_every_field(release: Release) -> Iterator[str]:
    """Every object is valid, with no unknown field, in every supported Kubernetes."""
    for manifest in release.objects + [inner for _, inner in embedded(release)]:
        for version in openapi.VERSIONS:
            for problem in openapi.problems(version, manifest):
                yield f"{manifest['kind']} {manifest['metadata']['name']} ({version}): {problem}"


@rule
def everything_lives_in_the_namespace(release: Release) -> Iterator[str]:
    """A namespace's admin can install: nothing is cluster-scoped, and nothing goes to another namespace."""
    for manifest in release.objects:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if not openapi.namespaced(manifest):
            yield f"{name} is cluster-scoped"
        if manifest["metadata"].get("namespace", "levada") != "levada":
            yield f"{name} goes to another namespace"


@rule
def names_and_labels_are_valid(release: Release) -> Iterator[str]:
    """Names fit what Kubernetes appends to them; each object says what it is part of."""
    seen: set[tuple[str, str]] = set()
    for manifest in release.objects:
        kind, metadata = manifest["kind"], manifest["metadata"]
        name = metadata["name"]
        if (kind, name) in seen:
            yield f"{kind} {name} is there twice"
        seen.add((kind, name))
        if not DNS_LABEL.fullmatch(name) or len(name) > LONGEST_NAME.get(kind, 63):
            yield f"{kind} {name}: {len(name)} characters, or not a DNS label"
        if metadata.get("labels", {}).get("app.kubernetes.io/part-of") != "levada":
            yield f"{kind} {name} is not labelled part of levada"
    for where, labels in _labels(release):
        yield from (
            f"{where}: label {key}={value}" for key, value in labels.items() if not LABEL_VALUE.fullmatch(value)
        )


def _labels(release: Release) -> Iterator[tuple[str, dict[str, str]]]:
    for manifest in release.objects:
        yield f"{manifest['kind']} {manifest['metadata']['name']}", manifest["metadata"].get("labels", {})
    for pod in pods(release):
        yield f"pod of {pod}", pod.metadata.get("labels", {})


@rule
def no_secret_is_rendered(release: Release) -> Iterator[str]:
    """Credentials are made in the cluster; the chart renders none, in no object, variable or argument."""
    yield from (f"Secret {each['metadata']['name']} is rendered" for each in release.kind("Secret"))
    for pod in pods(release):
        for container in pod.containers:
            where = f"{pod}, container {container['name']}"
            for variable in container.get("env", ()):
                value = str(variable.get("value", ""))
                if value and SECRET_WORDS.search(variable["name"]) and not value.startswith("/"):
                    yield f"{where}: {variable['name']} is in clear"
            for word in [*container.get("command", ()), *container.get("args", ())]:
                if re.search(r"(password|secret|token)[\w.-]*=(?![/$])\S", word, re.IGNORECASE):
                    yield f"{where}: an argument holds a credential: {word}"


@rule
def every_reference_holds(release: Release) -> Iterator[str]:
    """What an object names is rendered too, or is a Secret that the credentials Job makes or the user gave."""
    names = {(each["kind"], each["metadata"]["name"]) for each in release.objects}
    for pod in pods(release):
        account = pod.spec.get("serviceAccountName", "default")
        if account != "default" and ("ServiceAccount", account) not in names:
            yield f"{pod}: ServiceAccount {account} is not there"
        for kind, name, optional in sources(pod):
            if kind == "configMap" and ("ConfigMap", name) not in names and not optional:
                yield f"{pod}: ConfigMap {name} is not there"
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", ())}
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
        volumes |= {claim["metadata"]["name"] for claim in pod.owner["spec"].get("volumeClaimTemplates", ())}
        yield from (f"{pod}: volume {name} is not there" for name in mounted - volumes)
        yield from (f"{pod}: volume {name} is mounted nowhere" for name in volumes - mounted)
    for binding in release.kind("RoleBinding"):
        wanted = [("Role", binding["roleRef"]["name"])]
        wanted += [(subject["kind"], subject["name"]) for subject in binding["subjects"]]
        yield from (
            f"RoleBinding {binding['metadata']['name']}: {want} is not there" for want in wanted if want not in names
        )
    yield from _dangling_services(release)


def _dangling_services(release: Release) -> Iterator[str]:
    running = [pod for pod in pods(release) if pod.runs_on]
    ports: dict[str, set[Any]] = {}
    for service in release.kind("Service"):
        name = service["metadata"]["name"]
        ports[name] = {port[key] for port in service["spec"]["ports"] for key in ("name", "port") if key in port}
        behind = [pod for pod in running if service["spec"]["selector"].items() <= pod.metadata["labels"].items()]
        if len(behind) != 1:
            yield f"Service {name} selects the pods of {[str(pod) for pod in behind]}, not of one workload"
            continue
        targets = {
            port.get(key)
            for each in behind[0].containers
            for port in each.get("ports", ())
            for key in ("name", "containerPort")
        }
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in targets:
                yield f"Service {name}: {behind[0]} has no port {port.get('targetPort', port['port'])}"
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"Service {name} is not a ClusterIP"
    for backend, port in _backends(release):
        if port not in ports.get(backend, ()):
            yield f"a route leads to {backend}:{port}, which is no Service's port"
    for stateful in release.kind("StatefulSet"):
        if stateful["spec"].get("serviceName") not in ports:
            yield f"StatefulSet {stateful['metadata']['name']}: its Service is not there"


def _backends(release: Release) -> Iterator[tuple[str, Any]]:
    for ingress in release.kind("Ingress"):
        for host in ingress["spec"]["rules"]:
            for path in host["http"]["paths"]:
                service = path["backend"]["service"]
                yield service["name"], service["port"].get("name") or service["port"]["number"]
    for route in release.kind("HTTPRoute"):
        for each in route["spec"]["rules"]:
            yield from ((backend["name"], backend["port"]) for backend in each["backendRefs"])


# --- every pod --------------------------------------------------------------------------------------------------


@rule
def pods_are_restricted(release: Release) -> Iterator[str]:
    """The Pod Security Standard *restricted*, and a root file system that cannot be written."""
    for pod in pods(release):
        context = pod.spec.get("securityContext", {})
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod}: {key}"
        for volume in pod.spec.get("volumes", ()):
            yield from (
                f"{pod}: volume {volume['name']} is a {kind}" for kind in volume.keys() - {"name"} - RESTRICTED_VOLUMES
            )
        for container in pod.containers:
            yield from (f"{pod}, container {container['name']}: {wrong}" for wrong in _unrestricted(container, context))


def _unrestricted(container: dict[str, Any], pod_context: dict[str, Any]) -> Iterator[str]:
    context = {**pod_context, **container.get("securityContext", {})}
    wanted = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for key, value in wanted.items():
        if context.get(key) != value:
            yield f"{key} is {context.get(key)!r}, not {value!r}"
    if not isinstance(context.get("runAsUser"), int) or context["runAsUser"] == 0:
        yield f"runAsUser is {context.get('runAsUser')!r}, not a number above 0"
    yield from (f"{key} is set" for key in ("privileged", "procMount", "windowsOptions") if key in context)
    yield from (f"host port {port['hostPort']}" for port in container.get("ports", ()) if "hostPort" in port)


@rule
def pods_keep_to_themselves(release: Release) -> Iterator[str]:
    """No service links, and a token only for those who call the API server, by an account of their own."""
    for pod in pods(release):
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod}: enableServiceLinks is not false"
        token = pod.spec.get("automountServiceAccountToken")
        if token is not (pod.component in TOKENS):
            yield f"{pod}: automountServiceAccountToken is {token}, its component is {pod.component}"
        if token and pod.spec.get("serviceAccountName", "default") == "default":
            yield f"{pod}: uses the token of the namespace's default account"


@rule
def containers_are_bounded(release: Release) -> Iterator[str]:
    """Requests and limits for CPU and memory everywhere; no request above its limit."""
    for pod in pods(release):
        for container in pod.containers:
            resources = container.get("resources", {})
            for name in ("cpu", "memory"):
                request, limit = (resources.get(key, {}).get(name) for key in ("requests", "limits"))
                if request is None or limit is None:
                    yield f"{pod}, container {container['name']}: no request or limit for {name}"
                elif quantity(request) > quantity(limit):
                    yield f"{pod}, container {container['name']}: {name} {request} is above its limit {limit}"


@rule
def long_running_containers_are_probed(release: Release) -> Iterator[str]:
    """Startup, readiness and liveness probes."""
    for pod in pods(release):
        if pod.runs_on:
            side = [each for each in pod.spec.get("initContainers", ()) if each.get("restartPolicy") == "Always"]
            for container in [*pod.spec["containers"], *side]:
                missing = [
                    probe for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probe not in container
                ]
                if missing:
                    yield f"{pod}, container {container['name']}: no {', '.join(missing)}"


@rule
def images_are_pinned(release: Release) -> Iterator[str]:
    """A tag that is not `latest`, or a digest."""
    for image in images(release):
        name = image.rsplit("/", 1)[-1]
        if "@sha256:" not in name and (":" not in name or name.endswith((":latest", ":"))):
            yield f"image {image} is not pinned"


def images(release: Release) -> set[str]:
    """Every image that any pod of the release runs."""
    return {container["image"] for pod in pods(release) for container in pod.containers}


@rule
def nothing_depends_on_an_entrypoint(release: Release) -> Iterator[str]:
    """Each container names the program that it runs.

    The exporter's image is nothing but that program; the trainer's is named by the DAG.
    """
    for pod in pods(release):
        for container in pod.containers:
            if not container.get("command") and container["name"] != "exporter" and pod.component != "trainer":
                yield f"{pod}, container {container['name']}: no command"


@rule
def everything_is_measured(release: Release) -> Iterator[str]:
    """Prometheus reads the port `metrics` of every pod that runs for ever; one of Airflow's speaks for the others."""
    for pod in pods(release):
        ports = [port["name"] for container in pod.containers for port in container.get("ports", ())]
        scraped = pod.metadata["labels"].get("levada.io/scrape") == "true"
        if pod.runs_on and not scraped and pod.component not in {"airflow-scheduler", "airflow-dag-processor"}:
            yield f"{pod} is not scraped"
        if scraped and ports.count("metrics") != 1:
            yield f"{pod} is scraped and has {ports.count('metrics')} ports named metrics"


@rule
def lists_have_no_doubles(release: Release) -> Iterator[str]:
    """Server-side apply refuses a list with two entries of one key."""
    for pod in pods(release):
        lists = {"volumes": [volume["name"] for volume in pod.spec.get("volumes", ())]}
        for container in pod.containers:
            at = container["name"]
            lists[f"{at} env"] = [each["name"] for each in container.get("env", ())]
            lists[f"{at} mounts"] = [each["mountPath"] for each in container.get("volumeMounts", ())]
            lists[f"{at} ports"] = [each["name"] for each in container.get("ports", ())]
            lists[f"{at} port numbers"] = [each["containerPort"] for each in container.get("ports", ())]
        for where, entries in lists.items():
            if doubles := [entry for entry, count in Counter(entries).items() if count > 1]:
                yield f"{pod}, {where}: {doubles} more than once"


@rule
def workloads_can_be_upgraded(release: Release) -> Iterator[str]:
    """Selectors match their pods; they, volume claims and pods hold nothing that each upgrade changes."""
    for manifest in release.kind(*REPLICATED):
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        selector = manifest["spec"]["selector"]["matchLabels"]
        if not selector.items() <= manifest["spec"]["template"]["metadata"]["labels"].items():
            yield f"{name}: its selector does not match its pods"
        claims = [claim["metadata"].get("labels", {}) for claim in manifest["spec"].get("volumeClaimTemplates", ())]
        for labels in [selector, *claims, manifest["spec"]["template"]["metadata"]["labels"]]:
            if changing := [key for key in labels if "version" in key or "chart" in key]:
                yield f"{name}: {changing} changes with every version"
    selectors = Counter(json.dumps(each["spec"]["selector"], sort_keys=True) for each in release.kind(*REPLICATED))
    yield from (f"two workloads select {selector}" for selector, count in selectors.items() if count > 1)


@rule
def replicas_are_spread_and_guarded(release: Release) -> Iterator[str]:
    """Above one replica: spread over nodes and a disruption budget of one. At one: no budget, so that nodes drain."""
    scaled = {each["spec"]["scaleTargetRef"]["name"]: each["spec"] for each in release.kind("HorizontalPodAutoscaler")}
    budgets = release.kind("PodDisruptionBudget")
    for manifest in release.kind(*REPLICATED):
        name, spec = manifest["metadata"]["name"], manifest["spec"]
        if name in scaled and "replicas" in spec:
            yield f"{name}: `replicas` belongs to its autoscaler"
        if name not in scaled and "replicas" not in spec:
            yield f"{name}: no `replicas`"
        replicas = scaled[name]["maxReplicas"] if name in scaled else spec.get("replicas", 1)
        mine = [each for each in budgets if each["spec"]["selector"] == spec["selector"]]
        if len(mine) != (1 if replicas > 1 else 0):
            yield f"{name}: {replicas} replicas and {len(mine)} disruption budgets"
        yield from (
            f"{name}: its budget is not maxUnavailable 1" for each in mine if each["spec"].get("maxUnavailable") != 1
        )
        if replicas > 1 and not spec["template"]["spec"].get("topologySpreadConstraints"):
            yield f"{name}: {replicas} replicas are not spread"


@rule
def jobs_can_be_applied_again(release: Release) -> Iterator[str]:
    """Plain Jobs that stay: no hook but the tests, no TTL."""
    for manifest in release.objects:
        hook = manifest["metadata"].get("annotations", {}).get("helm.sh/hook", "test")
        if hook != "test":
            yield f"{manifest['kind']} {manifest['metadata']['name']} is a {hook} hook"
    for job in release.kind("Job"):
        if "ttlSecondsAfterFinished" in job["spec"]:
            yield f"Job {job['metadata']['name']} vanishes after a while"


def quantity(text: str | float) -> float:
    """Value of a Kubernetes quantity such as 150m or 1.5Gi."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    return float(match[1]) * (units[match[2]] if match[2] else 1)
