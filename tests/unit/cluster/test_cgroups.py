from __future__ import annotations

from pathlib import Path

import pytest

from levada.cluster import cgroups


@pytest.mark.parametrize(
    ("unified", "file", "text", "limit"),
    [
        (True, "memory.max", "1073741824", 1 << 30),
        (True, "memory.max", "max", None),
        (False, "memory.limit_in_bytes", "1073741824", 1 << 30),
        (False, "memory.limit_in_bytes", "9223372036854771712", None),
    ],
)
def test_a_limit_of_memory_is_read_in_both_versions(
    unified: bool, file: str, text: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "unified", lambda: unified)
    monkeypatch.setattr(cgroups, "memory", lambda path: tmp_path / path)
    (tmp_path / file).write_text(f"{text}\n")
    assert cgroups.memory_limit("") == limit
