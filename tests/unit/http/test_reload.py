"""Files that change while a process runs: a look that fails is not the last one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from levada.http import reload
from levada.http.reload import Reloaded, refreshing


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_look_that_fails_is_logged_once_and_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_REFRESH_SECONDS", 0.01)
    folder, looks = tmp_path / "declared", 0
    (tmp_path / "one").write_text("1")
    known: list[str] = []

    def look() -> None:
        nonlocal looks
        looks += 1
        known[:] = sorted(path.name for path in folder.iterdir())

    async def main() -> None:
        async with refreshing(look):
            await until(lambda: looks > 3)  # there is no such folder
            tmp_path.joinpath("new").mkdir()
            tmp_path.joinpath("one").rename(tmp_path / "new" / "one")
            tmp_path.joinpath("new").rename(folder)
            await until(lambda: known == ["one"])
            folder.rename(tmp_path / "away")
            seen = looks
            await until(lambda: looks > seen + 3)
            assert known == ["one"]  # the last good state
            tmp_path.joinpath("away", "two").touch()
            tmp_path.joinpath("away").rename(folder)
            await until(lambda: known == ["one", "two"])

    with capture_logs() as logs:
        asyncio.run(main())
    failed = [entry for entry in logs if entry["event"] == "files could not be looked at, the last good ones stay"]
    assert len(failed) == 2  # each time that the folder was away
    assert all(entry["log_level"] == "error" and entry["exc_info"] for entry in failed)


def test_a_file_that_was_written_by_half_is_read_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "number"
    file.write_text("17")
    number = Reloaded(file, lambda: int(file.read_text()))
    for text, value in (("1x", 17), ("", 17), ("234", 234)):
        file.write_text(text)
        number.refresh()
        assert number.value == value
    file.unlink()
    number.refresh()
    assert number.value == 234
