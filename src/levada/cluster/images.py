"""Building the images of the line with buildah where no image registry can be reached.

The Containerfiles in `images/` are standard and name official images as their bases. This builder puts roots of its
own in their place: `base`, a Debian that mmdebstrap makes from the mirror this machine uses, and `python`, the same
with Debian's Python. Jars are resolved on the host, where Maven has its cache and its settings. An image is built
again only when its inputs changed; results are OCI archives in the cache folder, with uncompressed layers, so that a
layer two images share has one digest and a node takes it once.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from levada.cluster import packages
from levada.cluster.archive import ImageArchive
from levada.cluster.cache import cache
from levada.cluster.errors import ClusterError
from levada.cluster.progress import Progress
from levada.cluster.shell import run

BUILDER = 1
"""Raised when the builder itself makes different images of the same inputs."""

SUITE = "trixie"
STAND_INS = {"debian:trixie-slim": "base", "python:3.13-slim": "python"}
"""Official images that Containerfiles name as their base, and what is built here in their place."""

PARALLEL = 2
BUILD_SECONDS = 3600

VALUES_KEYS = {
    "levada": "global.image.tools",
    "kafka": "ingest.kafka.image",
    "postgres": "stores.postgres.image",
    "postgres-exporter": "stores.postgres.exporter.image",
    "seaweedfs": "stores.s3.image",
    "airflow": "batch.airflow.image",
    "trainer": "batch.trainer.image",
    "mlflow": "registry.mlflow.image",
    "serving": "serving.predictor.image",
    "prometheus": "observability.prometheus.image",
    "orders": "ingest.orders.image",
}
"""Where the chart takes each image: places of a {repository, tag, digest} block in its values."""

_DPKG = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    *(f"path-exclude=/usr/share/{folder}/*" for folder in ("info", "lintian", "locale", "man")),
)
# Installed here, outside the steps that see this machine's own certificates.
_INCLUDE = "ca-certificates"
_APT = ('APT::Install-Recommends "false"', 'Acquire::Languages "none"')
# The mirror is this machine's business: it is in no image.
_ROOT_HOOK = (
    'cd "$1" && rm -rf etc/apt/sources.list* etc/hostname etc/resolv.conf var/cache/* var/lib/apt/lists/* var/log/*'
)

_WORK = "levada-images-"
_BASE = re.compile(r"^ARG BASE=(\S+)$", re.MULTILINE)
_COPY = re.compile(r"^COPY (?!--from)(.+) \S+$", re.MULTILINE)


@dataclass(frozen=True)
class Definition:
    """One folder of `images/`: a Containerfile and what it copies from the repository."""

    name: str
    text: str
    base: str | None
    """The definition whose image replaces the base named in the Containerfile; none for the root itself."""
    copies: tuple[str, ...]

    @property
    def python(self) -> bool:
        """Whether building it installs Python packages."""
        return any(Path(copied).name == "requirements.txt" for copied in self.copies)

    @property
    def pom(self) -> str | None:
        """The Maven file whose jars replace the stage `jars`."""
        return next((copied for copied in self.copies if Path(copied).name == "pom.xml"), None)


@dataclass(frozen=True)
class Built:
    """What is kept beside an archive."""

    tag: str
    digest: str
    size: int
    """Bytes of all layers, unpacked."""
    above: int
    """Bytes of the layers above the base image."""
    seconds: float
    inputs: dict[str, str] = field(default_factory=dict)
    """Hash of every input, to tell why an image is built again."""


def repository() -> Path:
    """Root of the checkout that this package runs from; ClusterError if it was installed without one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "images" / "base" / "Containerfile").is_file():
        raise ClusterError("images are built from a checkout: run this from the .venv that `make up` makes in one")
    return root


def definitions(root: Path) -> dict[str, Definition]:
    """All images by name, the two bases included."""
    found = {}
    for path in sorted((root / "images").glob("*/Containerfile")):
        text = path.read_text()
        base = _BASE.search(text)
        if base and base[1] not in STAND_INS:
            raise ClusterError(f"{path}: ARG BASE={base[1]} has no stand-in; use one of {', '.join(STAND_INS)}")
        copies = [word for line in _COPY.findall(text) for word in line.split()]
        found[path.parent.name] = Definition(
            path.parent.name, text, STAND_INS[base[1]] if base else None, tuple(dict.fromkeys(copies))
        )
    return found


def names(root: Path | None = None) -> list[str]:
    """The images that run, in the order in which they are built: the dearest first."""
    known = definitions(root or repository())
    order = ["airflow", "trainer", "mlflow", "levada", "kafka"]
    return sorted(
        (name for name in known if name not in STAND_INS.values()),
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )


def files(root: Path, definition: Definition) -> dict[str, Path]:
    """What a Containerfile copies, by path in the build context; compiled Python is no input."""
    found: dict[str, Path] = {}
    for copied in definition.copies:
        source = root / copied
        if not source.exists():
            raise ClusterError(
                f"images/{definition.name}/Containerfile copies {copied}, which is not in the repository"
            )
        inside = [source] if source.is_file() else sorted(source.rglob("*"))
        found |= {
            str(path.relative_to(root)): path for path in inside if path.is_file() and "__pycache__" not in path.parts
        }
    return found


def inputs(root: Path, known: Mapping[str, Definition], name: str) -> dict[str, str]:
    """Hash of every input of an image: its Containerfile, the files copied, its base, this builder."""
    definition = known[name]
    hashed = {
        path: hashlib.sha256(source.read_bytes() + bytes([source.stat().st_mode & 0o100 != 0])).hexdigest()
        for path, source in files(root, definition).items()
    }
    hashed[f"images/{name}/Containerfile"] = hashlib.sha256(definition.text.encode()).hexdigest()
    if definition.base:
        hashed[f"image {definition.base}"] = tag(inputs(root, known, definition.base))
    else:
        hashed["mmdebstrap options"] = hashlib.sha256(
            repr((SUITE, _INCLUDE, _DPKG, _APT, _ROOT_HOOK)).encode()
        ).hexdigest()
    hashed["builder"] = str(BUILDER)
    return hashed


def tag(hashed: Mapping[str, str]) -> str:
    """An image's tag: the hash of all its inputs."""
    return hashlib.sha256(json.dumps(sorted(hashed.items())).encode()).hexdigest()[:16]


def reason(hashed: Mapping[str, str], last: Built | None) -> str:
    """Why an image is built, for a person."""
    if last is None:
        return "not built yet"
    changed = sorted(key for key in hashed.keys() | last.inputs.keys() if hashed.get(key) != last.inputs.get(key))
    if not changed:
        return "its archive is gone"
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{changed[0]}{more} changed"


class Store:
    """The archives in the cache folder, one image a name and a record beside each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def archive(self, name: str, built: Built) -> ImageArchive:
        """An image as the cluster takes it."""
        return ImageArchive(f"levada/{name}", built.tag, built.digest, self.folder / f"{name}-{built.tag}.tar")

    def last(self, name: str) -> Built | None:
        """The record of the newest build of an image."""
        path = self.folder / f"{name}.json"
        return Built(**json.loads(path.read_text())) if path.exists() else None

    def current(self, name: str, wanted: str) -> Built | None:
        """The record of an image if it is the one wanted and its archive is there."""
        last = self.last(name)
        return last if last and last.tag == wanted and self.archive(name, last).path.exists() else None

    def keep(self, name: str, built: Built, written: Path) -> None:
        """Take an archive in, and drop older ones of that image."""
        path = self.archive(name, built).path
        written.rename(path)
        (self.folder / f"{name}.json").write_text(json.dumps(asdict(built), indent=1))
        for old in self.folder.glob(f"{name}-*.tar"):
            if re.fullmatch(re.escape(name) + "-[0-9a-f]{16}", old.stem) and old != path:
                old.unlink()


def layers(archive: Path) -> dict[str, int]:
    """Layers of an OCI archive with uncompressed layers: digest → bytes."""
    with tarfile.open(archive) as tar:

        def read(member: str) -> Any:
            extracted = tar.extractfile(member)
            if extracted is None:
                raise ClusterError(f"{archive}: {member} is no file; delete the archive and build again")
            return json.load(extracted)

        manifest = read("index.json")["manifests"][0]["digest"].replace(":", "/")
        return {layer["digest"]: layer["size"] for layer in read(f"blobs/{manifest}")["layers"]}


class Buildah:
    """Buildah with a storage of its own in the cache folder, and what this machine needs to reach its package mirrors.

    Mirrors, proxies and certificates are mounted into the steps that install packages; no image keeps them.
    """

    def __init__(self, folder: Path) -> None:
        self._state = Path(f"/run/levada/buildah-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}")
        self._command = ["buildah", "--root", str(folder), "--runroot", str(self._state), "--storage-driver", "overlay"]
        self._storage = f"overlay@{folder}+{self._state}"

    def __call__(self, *arguments: str | Path, timeout: float = BUILD_SECONDS) -> str:
        """Run one buildah command."""
        return run([*self._command, *arguments], timeout=timeout)

    def leave(self) -> None:
        """Drop what is of this run of the machine alone; nothing may be mounted."""
        shutil.rmtree(self._state, ignore_errors=True)
        with contextlib.suppress(OSError):  # a builder with another cache folder works here too
            self._state.parent.rmdir()

    def has(self, reference: str) -> bool:
        """Whether the storage has an image."""
        return reference in self("images", "--format", "{{.Name}}:{{.Tag}}").split()

    def build(self, context: Path, reference: str, *options: str | Path) -> None:
        """Build a context's Containerfile."""
        build = ["build", "--quiet", "--layers", "--isolation", "chroot", "--network", "host", "--format", "oci"]
        self(*build, "--tag", reference, *options, context)

    def layers(self, reference: str) -> set[str]:
        """Digests of an image's unpacked layers."""
        return set(json.loads(self("inspect", "--type", "image", reference))["OCIv1"]["rootfs"]["diff_ids"])

    def save(self, reference: str, target: str, digest: Path) -> None:
        """Copy an image out with uncompressed layers, which buildah's own push cannot; write its digest to a file."""
        copy: list[str | Path] = [
            "skopeo",
            "copy",
            "--quiet",
            "--dest-oci-accept-uncompressed-layers",
            "--digestfile",
            digest,
        ]
        run([*copy, f"containers-storage:[{self._storage}]{reference}", target], timeout=BUILD_SECONDS)


def mirror() -> list[str]:
    """The `deb` lines of the Debian mirror that this machine's own apt is set to use, for the suite of the images."""
    targets = run(["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
    uris = dict(reversed([line.split("|", 1) for line in targets.splitlines()]))
    if "Debian" not in uris:
        raise ClusterError("apt on this machine knows no Debian mirror: images can be built on Debian only")
    lines = [f"deb {uris['Debian']} {SUITE} main", f"deb {uris['Debian']} {SUITE}-updates main"]
    if "Debian-Security" in uris:
        lines.append(f"deb {uris['Debian-Security']} {SUITE}-security main")
    return lines


def pip_settings() -> dict[str, str]:
    """How pip on this machine reaches its index: index, proxy, certificates and patience, and nothing else."""
    wanted = ("index-url", "extra-index-url", "trusted-host", "proxy", "cert", "timeout", "retries")
    settings = {}
    # Later lines, those of the environment, win.
    listed = run([sys.executable, "-m", "pip", "config", "list"]).splitlines()
    for line in sorted(listed, key=lambda line: line.startswith(":env:")):
        key, value = line.split("=", 1)
        option = key.rsplit(".", 1)[-1].removeprefix("default-")
        if option in wanted:
            settings[option] = str(ast.literal_eval(value))
    return settings


class Builder:
    """Builds images into the cache folder."""

    def __init__(self, root: Path, folder: Path, progress: Progress) -> None:
        self.root, self.folder, self.progress = root, folder, progress
        self.known = definitions(root)
        self.store = Store(folder / "images")
        self.buildah = Buildah(folder / "buildah")
        self._work = Path()

    def build(self, wanted: Sequence[str]) -> list[ImageArchive]:
        """Build what is not there or not current; the archives in the order asked for."""
        hashed = {name: inputs(self.root, self.known, name) for name in self.known}
        stale = [name for name in wanted if not self.store.current(name, tag(hashed[name]))]
        if stale:
            self._machine(stale)
            # What a build that failed or was killed left behind.
            self.buildah("rm", "--all")
            for left in self.folder.glob(f"{_WORK}*"):
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(prefix=_WORK, dir=self.folder) as work:
                self._work = Path(work)
                for base in sorted({base for name in stale for base in self._bases(name)}):
                    self._base(base, tag(hashed[base]))
                with ThreadPoolExecutor(PARALLEL) as pool:
                    for done in [pool.submit(self._image, name, hashed[name]) for name in stale]:
                        done.result()
            self._tidy({tag(each) for each in hashed.values()})
            self.buildah.leave()
        current = {name: self.store.current(name, tag(hashed[name])) for name in wanted}
        return [self.store.archive(name, built) for name, built in current.items() if built]

    def _bases(self, name: str) -> list[str]:
        base = self.known[name].base
        return [*self._bases(base), base] if base else []

    def _machine(self, stale: Sequence[str]) -> None:
        if os.geteuid() != 0:
            raise ClusterError(f"images have to be built ({', '.join(stale)}), which needs root: run this with sudo")
        needed = ["buildah", "mmdebstrap", "skopeo"]
        if any(self.known[name].pom for name in stale):
            needed.append("maven")
        packages.ensure(needed, self.progress)

    def _base(self, name: str, wanted: str) -> None:
        """`base` or `python`, kept in buildah's storage only."""
        reference = f"localhost/levada/{name}:{wanted}"
        if self.buildah.has(reference):
            return
        with self.progress.phase(f"image {name}, the base of others"):
            context = self._context(name)
            options: list[str | Path] = []
            if base := self.known[name].base:
                options += self._options(self.known[name], self._reference(base))
            else:
                self._debian(context / "root.tar")
            self.buildah.build(context, reference, *options)
            shutil.rmtree(context)

    def _debian(self, tar: Path) -> None:
        options = [f"--aptopt={option}" for option in _APT] + [f"--dpkgopt={option}" for option in _DPKG]
        sources = self._work / "debian.list"
        sources.write_text("\n".join(mirror()) + "\n")
        hook = f"--customize-hook={_ROOT_HOOK}"
        debian = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDE}", *options, hook]
        run([*debian, SUITE, tar, sources], timeout=BUILD_SECONDS)

    def _reference(self, name: str) -> str:
        return f"localhost/levada/{name}:{tag(inputs(self.root, self.known, name))}"

    def _context(self, name: str) -> Path:
        """A folder with the Containerfile and the files it copies, no more."""
        context = self._work / name
        for path, source in files(self.root, self.known[name]).items():
            target = context / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        context.mkdir(exist_ok=True)
        (context / "Containerfile").write_text(self.known[name].text)
        return context

    def _options(self, definition: Definition, base: str) -> list[str | Path]:
        """Options of `buildah build`: the stand-in for the base, and the mounts for the steps that install."""
        sources = self._work / f"{definition.name}-sources"
        sources.mkdir()
        (sources / "mirror.list").write_text("\n".join(mirror()) + "\n")
        mounts = [f"{sources}:/etc/apt/sources.list.d:ro"]
        if definition.python:
            settings = pip_settings()
            bundle = "/etc/ssl/certs/ca-certificates.crt"
            if certificates := settings.pop("cert", None):
                mounts.append(f"{certificates}:{bundle}:ro")
                settings["cert"] = bundle
            file = self._work / f"{definition.name}-pip.conf"
            file.write_text("\n".join(["[global]", *(f"{key} = {value}" for key, value in settings.items())]) + "\n")
            mounts.append(f"{file}:/etc/pip.conf:ro")
        options: list[str | Path] = ["--build-arg", f"BASE={base}"]
        for mount in mounts:
            options += ["--volume", mount]
        return options

    def _jars(self, definition: Definition, pom: str) -> Path:
        """Resolve the jars of a Maven file and compare them with their recorded hashes; a context for `jars`."""
        context = self._work / f"{definition.name}-jars"
        libs = context / "opt" / definition.name / "libs"
        goal = "org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies"
        maven: list[str | Path] = ["mvn", "--batch-mode", "--quiet", "--file", self.root / pom, goal]
        run([*maven, "-DincludeScope=runtime", f"-DoutputDirectory={libs}"], timeout=BUILD_SECONDS)
        recorded = (self.root / pom).with_name("jars.sha256").read_text().splitlines()
        found = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}" for jar in libs.iterdir()]
        if sorted(recorded) != sorted(found):
            different = sorted({line.split()[1] for line in set(recorded) ^ set(found)})
            raise ClusterError(f"jars differ from {pom.replace('pom.xml', 'jars.sha256')}: {', '.join(different)}")
        return context

    def _image(self, name: str, hashed: dict[str, str]) -> None:
        definition = self.known[name]
        start = time.monotonic()
        with self.progress.phase(f"image {name} ({reason(hashed, self.store.last(name))})"):
            context = self._context(name)
            base = self._reference(definition.base) if definition.base else ""
            options = self._options(definition, base)
            if definition.pom:
                options += ["--build-context", f"jars={self._jars(definition, definition.pom)}"]
            if re.search(r"^FROM build AS ", definition.text, re.MULTILINE):
                # Kept under a name, so that tidying up spares it and a change of code costs seconds.
                self.buildah.build(context, f"localhost/levada/{name}-build:kept", "--target", "build", *options)
            reference = f"localhost/levada/{name}:{tag(hashed)}"
            self.buildah.build(context, reference, *options)
            written, digest = self._work / f"{name}.tar", self._work / f"{name}.digest"
            self.buildah.save(reference, f"oci-archive:{written}:{tag(hashed)}", digest)
            below = self.buildah.layers(base) if base else set()
            sizes = layers(written)
            built = Built(
                tag=tag(hashed),
                digest=digest.read_text().strip(),
                size=sum(sizes.values()),
                above=sum(size for layer, size in sizes.items() if layer not in below),
                seconds=round(time.monotonic() - start, 1),
                inputs=hashed,
            )
            self.store.keep(name, built, written)
            # The archive is the image; a further build starts from its build stage.
            self.buildah("rmi", "--force", reference)
            shutil.rmtree(context)

    def _tidy(self, wanted: set[str]) -> None:
        """Drop bases of other hashes, then all that no named image is made from."""
        for reference in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
            if reference.startswith("localhost/levada/") and reference.rpartition(":")[2] not in {*wanted, "kept"}:
                self.buildah("rmi", "--force", reference)
        self.buildah("rmi", "--prune")


def build(wanted: Sequence[str] | None, progress: Progress) -> list[ImageArchive]:
    """Build the named images, or all; those whose inputs did not change are not touched. ClusterError on failure."""
    root = repository()
    known = names(root)
    if unknown := sorted(set(wanted or ()) - set(known)):
        raise ClusterError(f"no such image: {', '.join(unknown)}; there are {', '.join(known)}")
    with (cache() / "images.lock").open("w") as lock:
        # One at a time: the second finds the work of the first done.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with progress.phase("waiting for another build of images to end"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        return Builder(root, cache(), progress).build(wanted or known)


def listed() -> dict[str, Built | None]:
    """Every image with the record of its newest build, none where it was not built."""
    store = Store(cache() / "images")
    return {name: store.last(name) for name in names()}


def push(archives: Sequence[ImageArchive], registry: str, progress: Progress) -> None:
    """Copy images to a registry ("registry.example.com/mirror"), digests unchanged; log in with skopeo before."""
    packages.ensure(["skopeo"], progress)
    for archive in archives:
        target = f"docker://{registry}/{archive.name}:{archive.tag}"
        with progress.phase(f"pushing {archive.name}"):
            run(
                ["skopeo", "copy", "--quiet", "--preserve-digests", f"oci-archive:{archive.path}", target], timeout=3600
            )


def values(archives: Sequence[ImageArchive]) -> dict[str, Any]:
    """Values for the chart that name exactly these images."""
    tree: dict[str, Any] = {}
    for archive in archives:
        *parents, last = VALUES_KEYS[archive.name.removeprefix("levada/")].split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = {"repository": archive.name, "tag": archive.tag, "digest": archive.digest}
    return tree
