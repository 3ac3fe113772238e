"""What a cluster runs in itself: DNS, volumes, metrics. Their images are made here of one static program each."""

import base64
import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

from levada.cluster import oci
from levada.cluster.archive import ImageArchive
from levada.cluster.binaries import MODULES
from levada.cluster.cache import cache
from levada.cluster.containerd import DEFAULT_DOMAIN
from levada.cluster.credentials import DOMAIN, Credentials
from levada.cluster.packages import unpack
from levada.cluster.plan import ClusterPlan

REPOSITORY = "levada-cluster"
BUSYBOX_TAG = "1"
APPLETS = ("sh", "mkdir", "rm", "sleep", "chmod", "ls", "cat")
# Holds a pod's namespaces: ends when told, and collects orphans of pods that share their process namespace.
PAUSE = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait; done"
IMAGES = ("pause", "busybox", "coredns", "local-path", "metrics-server")


def image(name: str) -> str:
    """Name and tag of one of the images, as pods write it; what it is made of is in the tag."""
    tag = MODULES[name].key.removeprefix(f"{name}-") if name in MODULES else BUSYBOX_TAG
    return f"{REPOSITORY}/{name}:{tag}"


def full_name(name: str) -> str:
    """The name that containerd keeps an image under; the pause image has to be given to it so."""
    return f"{DEFAULT_DOMAIN}/{image(name)}"


def busybox() -> Path:
    """A static busybox: the shell that volumes are made with."""
    program = cache() / "busybox" / "bin" / "busybox"
    if not program.exists():
        shutil.rmtree(cache() / "busybox", ignore_errors=True)
        unpack("busybox-static", cache() / "busybox")
    return program


def build(name: str, programs: Mapping[str, Path], folder: Path) -> ImageArchive:
    """Write the archive of one of the images into a folder."""
    repository, _, tag = image(name).partition(":")
    if name in MODULES:
        program = MODULES[name].programs[0]
        files = {f"usr/local/bin/{program}": programs[name] / program}
        return oci.write(folder, name=repository, tag=tag, files=files, entrypoint=[program])
    entrypoint = ["/bin/sh", "-c", PAUSE] if name == "pause" else ["/bin/sh"]
    links = {f"bin/{applet}": "busybox" for applet in APPLETS}
    files = {"bin/busybox": busybox()}
    return oci.write(folder, name=repository, tag=tag, files=files, links=links, entrypoint=entrypoint)


def manifests(plan: ClusterPlan, credentials: Credentials) -> str:
    """The addons' objects, ready for `kubectl apply`."""

    def encoded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    paths = [{"node": node.name, "paths": [str(node.directory / "volumes")]} for node in plan.nodes]
    values = {
        "busybox_image": image("busybox"),
        "coredns_image": image("coredns"),
        "local_path_image": image("local-path"),
        "metrics_server_image": image("metrics-server"),
        "dns_service": str(plan.dns_service),
        "domain": DOMAIN,
        "node_paths": json.dumps({"nodePathMap": paths}),
        "authority": encoded(credentials.authority.pair.certificate),
        "metrics_certificate": encoded(credentials.metrics_server.certificate),
        "metrics_key": encoded(credentials.metrics_server.key),
    }
    folder = resources.files("levada.cluster") / "manifests"
    texts = [(folder / f"{name}.yaml").read_text() for name in ("coredns", "local-path", "metrics-server")]
    return "---\n".join(Template(text).substitute(values) for text in texts)
