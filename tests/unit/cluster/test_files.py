from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from levada.cluster import oci
from levada.cluster.archive import ImageArchive
from levada.cluster.files import write


def test_a_file_is_private_and_left_alone_when_it_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write(path, b"one")
    inode = path.stat().st_ino
    write(path, b"one")
    assert path.stat().st_ino == inode
    write(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def image(folder: Path, program: Path) -> ImageArchive:
    return oci.write(
        folder,
        name="levada/web",
        tag="1",
        files={"bin/web": program},
        links={"bin/sh": "web"},
        entrypoint=["/bin/web"],
    )


def test_an_image_is_what_its_digests_say(tmp_path: Path) -> None:
    program = tmp_path / "web"
    program.write_bytes(b"program")
    made = image(tmp_path / "a", program)
    assert made.reference == f"levada/web:1@{made.digest}"
    with tarfile.open(made.path) as archive:

        def blob(digest: str) -> bytes:
            data = archive.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
            assert data is not None
            content = data.read()
            assert hashlib.sha256(content).hexdigest() == digest.removeprefix("sha256:")
            return content

        index = archive.extractfile("index.json")
        assert index is not None
        assert json.load(index)["manifests"][0]["digest"] == made.digest
        manifest = json.loads(blob(made.digest))
        config = json.loads(blob(manifest["config"]["digest"]))
        assert config["config"]["Entrypoint"] == ["/bin/web"]
        layer = manifest["layers"][0]
        assert config["rootfs"]["diff_ids"] == [layer["digest"]]
        (tmp_path / "layer.tar").write_bytes(blob(layer["digest"]))
    with tarfile.open(tmp_path / "layer.tar") as files:
        assert files.getmember("bin/web").mode == 0o755
        assert files.getmember("bin/sh").linkname == "web"


@pytest.mark.parametrize(("content", "same"), [(b"program", True), (b"other", False)])
def test_the_digest_follows_the_content_alone(tmp_path: Path, content: bytes, same: bool) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"program")
    second.write_bytes(content)
    assert (image(tmp_path / "a", first).digest == image(tmp_path / "b", second).digest) is same
