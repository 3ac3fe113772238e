"""The renderings that every rule of the chart is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from levada.values.chart import defaults, merge

from .render import ROOT, VALUES, Release, render

DIGEST = "sha256:" + "0123456789abcdef" * 4
PLANTS = {
    "fields": {
        "height": {"type": "double", "rule": "height > 0"},
        "kind": {"type": "string", "oneOf": ["fern", "moss"]},
    },
    "model": {"label": "kind"},
}
ORDER_PAGE = yaml.safe_load((ROOT / "examples" / "orders" / "values.yaml").read_text())
PIPELINES = {"global": {"pipelines": {"plants": PLANTS}}}

# Every knob that all workloads have, turned.
KNOBS: dict[str, Any] = {
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "levada", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "annotations": {"example.com/note": "of the pods"},
    "labels": {"example.com/team": "plants"},
    "extraEnv": {"EXTRA": "yes", "HOME": "/tmp/home"},
    "extraVolumes": {"mine": {"mountPath": "/mine", "volume": {"emptyDir": {}}}},
    "serviceAccount": {"annotations": {"example.com/role": "plants"}},
}
INGRESS = {"enabled": True, "className": "web", "host": "example.com", "tls": {"secretName": "certificate"}}
ROUTE = {"enabled": True, "host": "example.com", "gateway": {"name": "web", "namespace": "edge", "section": "https"}}

GIVEN = {"existingSecret": "made-before"}
EXTERNAL: dict[str, dict[str, Any]] = {
    "kafka": {
        "external": True,
        "bootstrap": "b-1.example.com:9096,b-2.example.com:9096",
        "users": dict.fromkeys(("admin", "collector", "sink", "predictor", "metrics"), GIVEN),
    },
    "postgres": {"external": True, "host": "db.example.com", "admin": GIVEN},
    "s3": {"external": True, "region": "ap-northeast-2", "pathStyle": False},
    "mlflow": {"external": True, "uri": "https://mlflow.example.com"},
}


def each_block(values: dict[str, Any], marker: str, content: dict[str, Any]) -> dict[str, Any]:
    """Values that put `content` into every block that has the key `marker`."""
    found = {key: each_block(value, marker, content) for key, value in values.items() if isinstance(value, dict)}
    found = {key: value for key, value in found.items() if value}
    return {**found, **content} if marker in values else found


def _features() -> dict[str, Mapping[str, Any]]:
    every = defaults()
    secrets = each_block(every, "existingSecret", GIVEN)
    features: dict[str, Mapping[str, Any]] = {
        "a pipeline": {},
        "the order page": ORDER_PAGE,
        "the order page, own secrets": merge(secrets, ORDER_PAGE),
        "knobs": merge(each_block(every, "extraVolumes", KNOBS), ORDER_PAGE),
        "replicas": merge(each_block(every, "replicas", {"replicas": 3}), ORDER_PAGE),
        "ingress": merge(each_block(every, "ingress", {"ingress": INGRESS}), ORDER_PAGE),
        "routes": merge(each_block(every, "httpRoute", {"httpRoute": ROUTE}), ORDER_PAGE),
        "own secrets": secrets,
        "registry": {"global": {"image": {"registry": "registry.example.com/mirror", "pullSecrets": {"mirror": True}}}},
        "digests": each_block(every, "digest", {"repository": "levada/any", "digest": DIGEST}),
        "tags": each_block(every, "digest", {"tag": "1.2.3"}),
        "zones": {
            "global": {"region": {"name": "home", "zones": {"a": True, "b": True, "c": False}}, "storageClass": "fast"}
        },
        "everything external": {"global": EXTERNAL},
        "everything external, own secrets": merge(secrets, {"global": EXTERNAL}),
        "pipeline off": {"global": {"pipelines": {"plants": {"enabled": False}}}},
        "sink off": {"global": {"pipelines": {"plants": {"stream": {"enabled": False}}}}},
        "predictor scaled": {"global": {"pipelines": {"plants": {"serving": {"maxReplicas": 4}}}}},
        "predictor scaled by requests": {
            "global": {"pipelines": {"plants": {"serving": {"maxReplicas": 4}}}},
            "serving": {"predictor": {"targetInFlight": 0.5}},
        },
        "predictor open, models kept": {
            "serving": {"predictor": {"apiKeys": {"enabled": False}, "cache": {"existingClaim": "models"}}}
        },
        "predictor off": {"global": {"pipelines": {"plants": {"serving": {"enabled": False}}}}},
        "model off": {"global": {"pipelines": {"plants": {"model": {"enabled": False}}}}},
        "two pipelines": {"global": {"pipelines": {"a" * 40: PLANTS}}},
        "collecting only": {room: {"enabled": False} for room in ("stream", "batch", "registry", "serving", "stores")},
        "three brokers": {"ingest": {"kafka": {"replicas": 3}}},
        "separate controllers": {"ingest": {"kafka": {"replicas": 3, "controllers": {"enabled": True}}}},
        "kafka by TLS": {
            "global": {"kafka": {"tls": {"existingSecret": "kafka-tls"}}},
            "ingest": {"kafka": {"replicas": 3}},
        },
        "no measuring": {"observability": {"enabled": False}},
        "no credentials Job": merge(secrets, {"credentials": {"enabled": False}}),
        "more settings": {
            "ingest": {"kafka": {"config": {"log.retention.hours": 24}}},
            "stores": {"postgres": {"config": {"work_mem": "8MB"}}},
            "batch": {"airflow": {"config": {"core": {"parallelism": 2}}}},
            "observability": {"prometheus": {"scrapeInterval": "30s"}},
            "registry": {"mlflow": {"allowedHosts": {"models.example.com": True}}},
        },
    }
    for name, block in EXTERNAL.items():
        features[f"external {name}"] = {"global": {name: block}}
    return features


FEATURES = _features()
LONG_RELEASE = "r" * 53
EXAMPLES = sorted(ROOT.glob("examples/*/values.yaml"))


def files() -> Iterator[tuple[str, ...]]:
    """Every combination of the values files that are shipped: one of each kind, or none."""
    tops = [(), *((file.stem,) for file in sorted(VALUES.glob("*.yaml")))]
    profiles = [(), *((f"profiles/{file.stem}",) for file in sorted(VALUES.glob("profiles/*.yaml")))]
    regions = [(), *((f"regions/{file.stem}",) for file in sorted(VALUES.glob("regions/*.yaml")))]
    for top in tops:
        for profile in profiles:
            yield from (top + profile + region for region in regions)


def feature(name: str, **arguments: Any) -> Release:
    """A feature on top of the defaults and one declared pipeline."""
    return render(values=merge(PIPELINES, dict(FEATURES[name])), **arguments)


def cases(helm: str = "helm") -> dict[str, Release]:
    """All renderings by what they are."""
    shipped = {" + ".join(combination) or "defaults": render(*combination, helm=helm) for combination in files()}
    featured = {name: feature(name, helm=helm) for name in FEATURES}
    long_names = {"long names": feature("two pipelines", helm=helm, release=LONG_RELEASE)}
    examples = {str(file.parent.name): render(values=yaml.safe_load(file.read_text()), helm=helm) for file in EXAMPLES}
    return shipped | featured | long_names | examples
