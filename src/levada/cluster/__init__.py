"""A real Kubernetes on this machine, built from source: `up` one, `Cluster` to use it, `down`."""

from levada.cluster.archive import ImageArchive
from levada.cluster.cluster import Cluster, up
from levada.cluster.errors import ClusterError
from levada.cluster.faults import Faults
from levada.cluster.lifecycle import down
from levada.cluster.links import Direction
from levada.cluster.progress import Console, Progress, Silent

__all__ = [
    "Cluster",
    "ClusterError",
    "Console",
    "Direction",
    "Faults",
    "ImageArchive",
    "Progress",
    "Silent",
    "down",
    "up",
]
