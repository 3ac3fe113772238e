"""An image as a file: what the image builder hands to a cluster."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageArchive:
    """One image in one OCI archive (a tar with `oci-layout` and `index.json`).

    `name` is the repository as pods write it, without registry and tag ("levada/kafka"); `digest` is the
    manifest's ("sha256:…"), the one that pods may pin.
    """

    name: str
    tag: str
    digest: str
    path: Path

    @property
    def reference(self) -> str:
        """Name, tag and digest as a pod may write them."""
        return f"{self.name}:{self.tag}@{self.digest}"
