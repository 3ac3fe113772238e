"""The programs of the cluster, compiled from Go modules once and kept by what went into them."""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from levada.cluster.cache import cache
from levada.cluster.errors import ClusterError
from levada.cluster.progress import Progress
from levada.cluster.toolchain import go

SOURCES = Path(__file__).parent / "go"
COMPONENT = "k8s.io/component-base/version"
CLIENT = "k8s.io/client-go/pkg/version"


@dataclass(frozen=True)
class Module:
    """A Go module of this folder: `package` is the dependency whose version it has, `programs` what it installs.

    `stamps` are variables set at link time, with {version}, {major} and {minor} filled in.
    """

    name: str
    package: str
    programs: tuple[str, ...]
    stamps: tuple[str, ...] = ()
    rename: tuple[str, str] | None = None

    @property
    def source(self) -> Path:
        """Folder of go.mod and go.sum."""
        return SOURCES / self.name

    @property
    def version(self) -> str:
        """Version that go.mod asks for, like v1.35.4."""
        found = re.search(rf"^\s*{re.escape(self.package)} (v\S+)", (self.source / "go.mod").read_text(), re.MULTILINE)
        if not found:
            raise ClusterError(f"{self.source / 'go.mod'} does not require {self.package}: restore it")
        return found[1]

    @property
    def linker_flags(self) -> str:
        """What `go install -ldflags` is given."""
        major, minor, *_ = self.version.removeprefix("v").split(".")
        filled = (stamp.format(version=self.version, major=major, minor=minor) for stamp in self.stamps)
        return " ".join(["-s -w", *(f"-X {stamp}" for stamp in filled)])

    @property
    def key(self) -> str:
        """Name of the cache folder: changes with the sources, the flags and the machine's kind."""
        parts = [(self.source / file).read_bytes() for file in ("go.mod", "go.sum")]
        parts.append(json.dumps([self.linker_flags, self.programs, platform.machine()]).encode())
        return f"{self.name}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:12]}"


MODULES = {
    module.name: module
    for module in (
        Module("etcd", "go.etcd.io/etcd/server/v3", ("etcd",), rename=("server", "etcd")),
        Module(
            "kubernetes",
            "k8s.io/kubernetes",
            ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
            # without these the server calls itself v0.0.0 and every chart's kubeVersion check fails
            (
                f"{COMPONENT}.gitVersion={{version}}",
                f"{COMPONENT}.gitMajor={{major}}",
                f"{COMPONENT}.gitMinor={{minor}}",
                f"{CLIENT}.gitVersion={{version}}",
                f"{CLIENT}.gitMajor={{major}}",
                f"{CLIENT}.gitMinor={{minor}}",
            ),
        ),
        Module("coredns", "github.com/coredns/coredns", ("coredns",)),
        Module("local-path", "github.com/rancher/local-path-provisioner", ("local-path-provisioner",)),
        Module("metrics-server", "sigs.k8s.io/metrics-server", ("metrics-server",)),
        Module("helm", "helm.sh/helm/v4", ("helm",), ("helm.sh/helm/v4/internal/version.version={version}",)),
        Module("helm3", "helm.sh/helm/v3", ("helm",), ("helm.sh/helm/v3/internal/version.version={version}",)),
    )
}
NODE_MODULES = ("etcd", "kubernetes", "coredns", "local-path", "metrics-server")


class Binaries:
    """The compiled programs; what is missing is built when it is asked for."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def ensure(self, *names: str) -> dict[str, Path]:
        """Build the modules that are not in the cache; the folder of each one's programs by module name."""
        folders = {name: cache() / "bin" / MODULES[name].key for name in names}
        if not all(folder.exists() for folder in folders.values()):
            with (cache() / "build.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once take longer than one after the other
                wanted = [name for name in names if not folders[name].exists()]
                for done, name in enumerate(wanted, 1):
                    self._build(MODULES[name], folders[name], f"{done} of {len(wanted)}")
                for scratch in ("go-build", "go-mod"):
                    shutil.rmtree(cache() / scratch, ignore_errors=True)
        return folders

    def program(self, module: str, name: str) -> Path:
        """Path of one program, built if it has to be."""
        return self.ensure(module)[module] / name

    def _build(self, module: Module, folder: Path, count: str) -> None:
        compiler = go(self._progress)
        half = folder.with_name(folder.name + ".new")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        # Both caches are our own and dropped afterwards: together they reach 10 GB. -modcacherw lets them be removed.
        environment = os.environ | {
            "CGO_ENABLED": "0",
            "GOBIN": str(half),
            "GOCACHE": str(cache() / "go-build"),
            "GOFLAGS": "-modcacherw -buildvcs=false",
            "GOMODCACHE": str(cache() / "go-mod"),
            "GOTOOLCHAIN": "local",
        }
        argv = [str(compiler), "install", "-v", "-trimpath", "-ldflags", module.linker_flags, "tool"]
        with self._progress.phase(f"compiling {module.name} {module.version} ({count})"):
            self._compile(argv, module.source, environment)
        if module.rename:
            (half / module.rename[0]).rename(half / module.rename[1])
        half.rename(folder)

    def _compile(self, argv: Sequence[str], source: Path, environment: dict[str, str]) -> None:
        start = time.monotonic()
        last: deque[str] = deque(maxlen=12)
        packages = 0
        with subprocess.Popen(
            argv, cwd=source, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as compiler:
            for line in compiler.stdout or ():
                text = line.strip()
                last.append(text)
                if text.startswith("go: downloading"):
                    self._progress.detail(text.removeprefix("go: "))
                else:
                    packages += 1
                    self._progress.detail(f"{text}, {packages} packages, {time.monotonic() - start:.0f} s")
        if compiler.returncode:
            raise ClusterError("\n".join([f"{' '.join(argv[:2])} in {source} failed:", *last]))
