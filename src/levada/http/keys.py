"""API keys: who may post events, and to which pipelines. Only digests of keys are ever on disk or in memory."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from levada.config import ConfigError, read_secret


class ApiKey(BaseModel):
    """What one key may do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hex digest of the key."""
    pipelines: tuple[str, ...]
    """Names of pipelines, or ``*`` for all."""

    def allows(self, pipeline: str) -> bool:
        """Whether events of this pipeline may be posted."""
        return "*" in self.pipelines or pipeline in self.pipelines


ApiKeys = dict[str, ApiKey]
"""Key id → key."""

_FILE: TypeAdapter[ApiKeys] = TypeAdapter(ApiKeys)


def load_keys(path: Path) -> ApiKeys:
    """The keys in a file ``{"<id>": {"sha256": "<hex>", "pipelines": ["*"]}}``.

    Raises:
        ConfigError: the file cannot be read or is not of that form.
    """
    try:
        return _FILE.validate_json(read_secret(path))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ConfigError(f"API keys file {path}: {problems}") from None


def find(keys: ApiKeys, given: bytes) -> ApiKey | None:
    """The key that was given, if it is one of these; takes as long whichever it is."""
    digest = hashlib.sha256(given).hexdigest()
    found = None
    for key in keys.values():
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found
