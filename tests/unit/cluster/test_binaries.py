from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from levada.cluster import binaries, packages, toolchain
from levada.cluster.binaries import MODULES, Binaries
from levada.cluster.errors import ClusterError
from levada.cluster.progress import Silent


def test_every_module_is_there_and_says_its_version() -> None:
    for module in MODULES.values():
        assert module.version.startswith("v")
        assert (module.source / "go.sum").exists()
        tools = [line for line in (module.source / "go.mod").read_text().splitlines() if "tool" in line]
        assert tools, module.name


def test_kubernetes_is_stamped_with_its_version() -> None:
    flags = MODULES["kubernetes"].linker_flags
    assert f"gitVersion={MODULES['kubernetes'].version} " in flags
    assert "gitMinor=35" in flags


def test_the_key_follows_what_goes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MODULES["etcd"]
    monkeypatch.setattr(binaries, "SOURCES", tmp_path)
    shutil.copytree(Path(binaries.__file__).parent / "go" / "etcd", tmp_path / "etcd")
    keys = {module.key}
    assert keys == {module.key}
    keys.add(dataclasses.replace(module, stamps=("a.b={version}",)).key)
    keys.add(dataclasses.replace(module, programs=("etcd", "etcdctl")).key)
    for file in ("go.mod", "go.sum"):
        with (tmp_path / "etcd" / file).open("a") as changed:
            changed.write("\n")
        keys.add(module.key)
    assert len(keys) == 5


def test_what_is_in_the_cache_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path))
    monkeypatch.setattr(binaries, "go", lambda _: pytest.fail("a compiler was asked for"))
    folder = tmp_path / "bin" / MODULES["helm"].key
    folder.mkdir(parents=True)
    assert Binaries(Silent()).program("helm", "helm") == folder / "helm"


def test_a_failed_build_leaves_nothing_that_looks_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path))
    compiler = tmp_path / "go"
    compiler.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(binaries, "go", lambda _: compiler)
    for _ in range(2):
        with pytest.raises(ClusterError, match="no such module"):
            Binaries(Silent()).ensure("etcd")


@pytest.mark.parametrize(
    ("text", "enough"),
    [("go version go1.26.8 linux/amd64", True), ("go1.27", True), ("go1.26.3", False), ("go1.9.9", False), ("", False)],
)
def test_only_a_new_enough_compiler_is_taken(text: str, enough: bool) -> None:
    assert (toolchain.version(text) >= toolchain.OLDEST) is enough


def test_without_root_the_command_to_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"sudo apt-get install no-such-package$"):
        packages.ensure(["coreutils", "no-such-package"], Silent())
    packages.ensure(["coreutils"], Silent())
