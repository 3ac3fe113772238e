"""The control plane: etcd, API server, controller manager and scheduler on a machine of their own."""

from pathlib import Path

from levada.cluster.credentials import SECURE_PORT, Credentials
from levada.cluster.machines import Machine
from levada.cluster.plan import ClusterPlan

ETCD = "http://127.0.0.1:2379"  # in the control namespace, where nothing but the control plane runs
# A node that says nothing for 20 s is lost, and its pods are replaced 10 s later. A kubelet speaks every 5 s (a quarter
# of what its lease lasts), so three words may go missing on a busy machine. The defaults, 50 s and 5 min, are for
# data centres, where a node that comes back is dearer than a wait; here a lost node is mostly a drill that waits.
LOST_AFTER = 20  # seconds
EVICTED_AFTER = 10  # seconds


def machine(plan: ClusterPlan, credentials: Credentials, programs: dict[str, Path]) -> Machine:
    """The control plane's machine; `programs` has the folder of each module's programs."""
    directory = plan.directory / "control"
    kubernetes = programs["kubernetes"]
    authority, front_proxy = credentials.authority.pair, credentials.front_proxy.pair
    etcd: list[str | Path] = [
        programs["etcd"] / "etcd",
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        "--log-level=warn",
    ]
    apiserver: list[str | Path] = [
        kubernetes / "kube-apiserver",
        f"--etcd-servers={ETCD}",
        f"--advertise-address={plan.control_address}",
        f"--bind-address={plan.control_address}",
        f"--secure-port={SECURE_PORT}",
        f"--tls-cert-file={credentials.apiserver.certificate}",
        f"--tls-private-key-file={credentials.apiserver.key}",
        f"--client-ca-file={authority.certificate}",
        "--anonymous-auth=false",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={plan.services}",
        f"--default-not-ready-toleration-seconds={EVICTED_AFTER}",
        f"--default-unreachable-toleration-seconds={EVICTED_AFTER}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={credentials.service_account_public}",
        f"--service-account-signing-key-file={credentials.service_account_key}",
        f"--kubelet-certificate-authority={authority.certificate}",
        f"--kubelet-client-certificate={credentials.apiserver_kubelet.certificate}",
        f"--kubelet-client-key={credentials.apiserver_kubelet.key}",
        "--kubelet-preferred-address-types=InternalIP",  # names of nodes do not resolve
        f"--requestheader-client-ca-file={front_proxy.certificate}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={credentials.front_proxy_client.certificate}",
        f"--proxy-client-key-file={credentials.front_proxy_client.key}",
        "--enable-aggregator-routing=true",  # no kube-proxy here: go to the pods behind a Service
        "--endpoint-reconciler-type=lease",
        "--profiling=false",
    ]
    controller_manager: list[str | Path] = [
        kubernetes / "kube-controller-manager",
        f"--kubeconfig={credentials.controller_manager}",
        f"--authentication-kubeconfig={credentials.controller_manager}",
        f"--authorization-kubeconfig={credentials.controller_manager}",
        "--bind-address=127.0.0.1",
        f"--client-ca-file={authority.certificate}",
        f"--root-ca-file={authority.certificate}",
        f"--cluster-signing-cert-file={authority.certificate}",
        f"--cluster-signing-key-file={authority.key}",
        f"--service-account-private-key-file={credentials.service_account_key}",
        "--use-service-account-credentials=true",
        f"--service-cluster-ip-range={plan.services}",
        f"--cluster-cidr={plan.pods}",
        "--allocate-node-cidrs=false",  # each node's range follows from its number
        f"--node-monitor-grace-period={LOST_AFTER}s",
        "--node-monitor-period=2s",
        "--leader-elect=false",
        "--profiling=false",
    ]
    scheduler: list[str | Path] = [
        kubernetes / "kube-scheduler",
        f"--kubeconfig={credentials.scheduler}",
        f"--authentication-kubeconfig={credentials.scheduler}",
        f"--authorization-kubeconfig={credentials.scheduler}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]
    return Machine(
        name="control",
        namespace=plan.control_namespace,
        cgroup=f"{plan.cgroup}/control",
        directory=directory,
        programs={
            "etcd": etcd,
            "kube-apiserver": apiserver,
            "kube-controller-manager": controller_manager,
            "kube-scheduler": scheduler,
        },
        inputs=[
            credentials.apiserver.certificate,
            credentials.apiserver_kubelet.certificate,
            credentials.front_proxy_client.certificate,
            credentials.controller_manager,
            credentials.scheduler,
        ],
    )
