"""A cluster with custom metrics, for as long as a test needs them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from levada.cluster.pki import SERVER, Authority
from levada.line.install import ROOT
from tests.cluster.conftest import wait_for

if TYPE_CHECKING:
    from tests.cluster.conftest import Line

_HOST: Final = "custom-metrics.levada.svc"
_SERVER: Final = Template("""
apiVersion: v1
kind: Secret
metadata: {name: custom-metrics}
data: {adapter.py: $code, rules.yaml: $rules, tls.crt: $certificate, tls.key: $key}
---
apiVersion: v1
kind: Service
metadata: {name: custom-metrics}
spec:
  selector: {app: custom-metrics}
  ports: [{port: 443, targetPort: 6443}]
---
apiVersion: v1
kind: Pod
metadata: {name: custom-metrics, labels: {app: custom-metrics}}
spec:
  serviceAccountName: levada-prometheus  # which may list the pods
  automountServiceAccountToken: true
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: adapter
      image: $image
      command: [python, /adapter/adapter.py, "http://levada-prometheus:9090", /adapter]
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      readinessProbe:
        httpGet: {path: /apis/custom.metrics.k8s.io/v1beta2, port: 6443, scheme: HTTPS}
        timeoutSeconds: 5
      volumeMounts: [{name: adapter, mountPath: /adapter}]
  volumes:
    - name: adapter
      secret: {secretName: custom-metrics}
""")
_API: Final = Template("""
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta2.custom.metrics.k8s.io}
spec:
  group: custom.metrics.k8s.io
  version: v1beta2
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: $authority
  service: {name: custom-metrics, namespace: levada}
""")


@contextmanager
def custom_metrics(line: Line, folder: Path) -> Iterator[None]:
    """The API of custom metrics, by the rule that readers are told to give to prometheus-adapter."""
    page = (ROOT / "docs" / "how-to" / "predict.md").read_text()
    (rules,) = re.findall(r"^```yaml\n(rules:\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    authority = Authority(folder, "authority")
    pair = authority.issue("adapter", name=_HOST, usage=SERVER, hosts=(_HOST,))
    server = _SERVER.substitute(
        code=_encoded(Path(__file__).with_name("adapter.py").read_bytes()),
        rules=_encoded(rules.encode()),
        certificate=_encoded(pair.certificate.read_bytes()),
        key=_encoded(pair.key.read_bytes()),
        image=line.kubectl(
            "get", "deployment/levada-predictor-iris", "--output=jsonpath={.spec.template.spec.containers[0].image}"
        ),
    )
    api = _API.substitute(authority=_encoded(authority.pair.certificate.read_bytes()))
    with ExitStack() as back:
        back.callback(line.kubectl, "delete", "--filename=-", "--ignore-not-found", stdin=server)
        line.kubectl("apply", "--filename=-", stdin=server)
        back.callback(lambda: print(line.kubectl("logs", "custom-metrics")))
        line.kubectl("wait", "pod/custom-metrics", "--for=condition=Ready", "--timeout=60s", timeout=70)
        # It belongs to the whole cluster, so it is no namespace's admin's. It goes first: an API without its server
        # keeps namespaces from being deleted.
        back.callback(line.admin.kubectl, "delete", "--filename=-", "--ignore-not-found", stdin=api)
        line.admin.kubectl("apply", "--filename=-", stdin=api)
        wait_for(lambda: line.admin.kubectl("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2"), 60)
        yield


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
