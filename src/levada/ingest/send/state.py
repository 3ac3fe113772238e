"""What is known of a file that was begun: which it is, how far it is sent, what was refused."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from levada.errors import UserError

_EDGE_BYTES: Final = 64 * 1024
_SCHEME: Final = "1"
"""Of the event ids; with another one every row would be another event."""


class StateError(UserError):
    """A state that cannot be used; the message names the file and what to do."""


class Identity(BaseModel):
    """Which file it is."""

    size: int
    """Bytes."""
    mtime_ns: int
    edges: str
    """Digest of the first and the last 64 KiB: a quick look whether it is still the same."""
    content: str
    """Digest of all of it: what the event ids follow from, so that a copy of the file has the same ids."""


class State(BaseModel):
    """As it stands on disk."""

    pipeline: str
    file: Identity
    offset: int = 0
    """Bytes before the block in which the first unanswered row is."""
    offset_row: int = 0
    """Rows before that block."""
    answered: int = 0
    """Rows from the beginning that are answered, all of them."""
    accepted: int = 0
    refused: int = 0
    refused_bytes: int = 0
    """Size of the file of refusals up to the last answered row."""
    finished: datetime | None = None

    @property
    def batch_key(self) -> str:
        """What the event ids begin with: file and pipeline."""
        return hashlib.blake2b(f"{_SCHEME}/{self.pipeline}/{self.file.content}".encode(), digest_size=16).hexdigest()


def begin(file: BufferedReader, path: Path, pipeline: str) -> State:
    """The state that is stored at ``path`` for this file and pipeline, else a new one.

    Raises:
        StateError: what is stored there cannot be read.
    """
    status, quick = os.fstat(file.fileno()), edges(file)
    if path.exists():
        try:
            state = State.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise StateError(
                f"{path} cannot be read, delete it to begin anew (no row will be there twice): {error}"
            ) from error
        same = (status.st_size, status.st_mtime_ns, quick) == (state.file.size, state.file.mtime_ns, state.file.edges)
        if same and state.pipeline == pipeline:
            return state
        content = _content(file)
        if (content, pipeline) == (state.file.content, state.pipeline):  # only touched
            state.file.mtime_ns = status.st_mtime_ns
            return state
    else:
        content = _content(file)
    identity = Identity(size=status.st_size, mtime_ns=status.st_mtime_ns, edges=quick, content=content)
    return State(pipeline=pipeline, file=identity)


def save(state: State, path: Path) -> None:
    """Replace what is stored, whole or not at all."""
    scratch = path.with_name(path.name + ".new")
    with scratch.open("w") as file:
        file.write(state.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def finish(state: State) -> None:
    """Note that every row is answered."""
    state.finished = datetime.now(UTC)


def unchanged(state: State, file: BufferedReader) -> bool:
    """Whether the open file is still the one that was begun."""
    status = os.fstat(file.fileno())
    return (status.st_size, status.st_mtime_ns) == (state.file.size, state.file.mtime_ns)


def edges(file: BufferedReader) -> str:
    """Digest of the first and the last 64 KiB of a file."""
    digest = hashlib.blake2b(digest_size=16)
    file.seek(0)
    digest.update(file.read(_EDGE_BYTES))
    file.seek(max(0, os.fstat(file.fileno()).st_size - _EDGE_BYTES))
    digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()


def _content(file: BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "blake2b").hexdigest()[:64]
