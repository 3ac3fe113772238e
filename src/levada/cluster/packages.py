"""Debian packages: found, installed where that is allowed, else named in the one command that installs them."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from levada.cluster.errors import ClusterError
from levada.cluster.progress import Progress
from levada.cluster.shell import run

CLUSTER = (
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "ethtool",
    "iproute2",
    "iptables",
    "nftables",
    "runc",
    "util-linux",
)


def missing(packages: Sequence[str]) -> list[str]:
    """The packages that are not installed."""
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in shown.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def ensure(packages: Sequence[str], progress: Progress) -> None:
    """Install what is missing; ClusterError with the command to run where this process is not root."""
    wanted = missing(packages)
    if not wanted:
        return
    if os.geteuid() != 0:
        raise ClusterError(f"Debian packages are missing. Run: sudo apt-get install {' '.join(wanted)}")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *wanted]
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    with progress.phase(f"installing Debian packages: {' '.join(wanted)}"):
        run([*environment, "apt-get", "update"], timeout=600)
        run([*environment, *install], timeout=1800)


def unpack(package: str, into: Path) -> None:
    """Unpack a package's files into a folder without installing it."""
    into.mkdir(parents=True, exist_ok=True)
    download = 'apt-get download "$2" || { apt-get update && apt-get download "$2"; }'  # a new machine has no lists yet
    script = f'cd "$1"; {download}; dpkg-deb -x ./*.deb .; rm ./*.deb'  # apt downloads into the working directory
    run(["sh", "-ec", script, "sh", into, package], timeout=600)
