"""One command at a time works on a cluster; commands for different clusters do not wait for each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from levada.cluster import ClusterError, Silent, lifecycle


def take(folder: Path, taken: threading.Event) -> threading.Thread:
    """Take a folder's lock in another thread, which tells when it has it."""

    def work() -> None:
        with lifecycle._locked(folder, Silent()):
            taken.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_another_cluster_is_not_waited_for(tmp_path: Path) -> None:
    other = threading.Event()
    with lifecycle._locked(tmp_path / "a", Silent()):
        take(tmp_path / "b", other).join(5)
        assert other.is_set()


def test_the_same_cluster_is_waited_for_even_if_it_is_taken_down(tmp_path: Path) -> None:
    same = threading.Event()
    with lifecycle._locked(tmp_path / "a", Silent()):
        thread = take(tmp_path / "a", same)
        assert not same.wait(0.3)
        (tmp_path / "a").rmdir()
    thread.join(5)
    assert same.is_set()
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize("name", ["../a", "a/b", "A"])
def test_a_bad_name_is_refused_before_anything_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_need_root", lambda: None)
    monkeypatch.setattr(lifecycle, "STATE", tmp_path / "state")
    with pytest.raises(ClusterError, match="lower-case"):
        lifecycle.down(name, Silent())
    assert not (tmp_path / "state").exists()
