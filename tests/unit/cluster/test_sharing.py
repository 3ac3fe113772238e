"""How a node's images are found on another one, from what containerd tells."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

from levada.cluster import oci
from levada.cluster.sharing import behead, committed, folder, order

LISTING = """\
KEY                PARENT            KIND
0eb45cf7           sha256:top        Active
sha256:top         sha256:middle     Committed
sha256:middle      sha256:base       Committed
sha256:base                          Committed
levada-sharing-2                     Active
"""


def test_layers_are_those_that_no_container_writes_to() -> None:
    assert committed(LISTING) == {"sha256:top": "sha256:middle", "sha256:middle": "sha256:base", "sha256:base": ""}


def test_a_layer_comes_after_the_one_it_lies_on() -> None:
    parents = committed(LISTING) | {"sha256:other": "sha256:base"}
    ordered = order(parents)
    assert all(not parent or ordered.index(parent) < ordered.index(layer) for layer, parent in parents.items())
    assert set(ordered) == set(parents)


def test_the_uppermost_folder_is_found_in_every_kind_of_mount() -> None:
    look = {"Type": "overlay", "Source": "overlay", "Options": ["index=off", "lowerdir=/s/16/fs:/s/15/fs"]}
    written = {"Source": "overlay", "Options": ["workdir=/s/42/work", "upperdir=/s/42/fs", "lowerdir=/s/16/fs:/s/1/fs"]}
    lowest = {"Type": "bind", "Source": "/s/1/fs", "Options": ["ro", "rbind"]}
    assert [folder([mount]) for mount in (look, written, lowest)] == [
        Path("/s/16/fs"),
        Path("/s/42/fs"),
        Path("/s/1/fs"),
    ]


def test_an_image_without_its_layers_tells_what_is_left_out(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x" * 100_000)
    archive = oci.write(tmp_path, name="a", tag="1", files={"bin/program": program}, entrypoint=["/bin/program"])
    head, layers = behead(archive.path)
    with tarfile.open(archive.path) as whole, tarfile.open(fileobj=BytesIO(head)) as small:
        left_out = set(whole.getnames()) - set(small.getnames())
        assert left_out == {f"blobs/{digest.replace(':', '/')}" for digest in layers}
        assert [whole.getmember(name).size for name in left_out] == list(layers.values())
        assert f"blobs/{archive.digest.replace(':', '/')}" in small.getnames()
    assert len(head) < 20_000
