"""Digests in place of sensitive values, so that the clear value never leaves the collector.

``argon2id`` is for values that could be guessed: every digest has its own salt, and costs what the settings say.
``hmac`` keeps equal values of one field equal. Both need the pepper, which is in no topic, table or log.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from argon2.low_level import Type, hash_secret
from prometheus_client import Gauge, Histogram

from levada.config import CollectorSettings, ConfigError, read_secret
from levada.pipeline import Pipeline

_MIN_PEPPER: Final = 16
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
_LOW_PRIORITY: Final = 10

SEAL_SECONDS: Final = Histogram(
    "levada_collector_seal_seconds",
    "Making one Argon2id digest, without the wait for a thread.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
)
SEALING: Final = Gauge("levada_collector_sealing", "Argon2id digests that are made or waited for.")


class BusyError(Exception):
    """As many digests are waited for as may be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many sensitive values at once")
        self.retry_after = retry_after
        """Seconds after which there is room again."""


def load_pepper(path: Path) -> bytes:
    """The pepper in a file.

    Raises:
        ConfigError: it cannot be read, or is too short to be a secret.
    """
    pepper = read_secret(path).encode()
    if len(pepper) < _MIN_PEPPER:
        raise ConfigError(f"pepper {path} has {len(pepper)} bytes, it must have {_MIN_PEPPER} or more")
    return pepper


class Sealer:
    """Makes digests; ``pepper`` gives the pepper as it is now.

    Argon2id runs on threads of its own with low priority: it gives the interpreter free while it computes, and the
    event loop goes first where processors are few.
    """

    def __init__(self, settings: CollectorSettings, pepper: Callable[[], bytes]) -> None:
        self._settings = settings
        self._pepper = pepper
        self._waiting = 0
        self._seconds = 0.2  # what a digest took lately
        self._pool = ThreadPoolExecutor(settings.seal_threads, "seal", initializer=_go_last)

    async def seal(self, pipeline: Pipeline, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event with digests in place of its sensitive values; absent and null ones stay so.

        An event with more ``argon2id`` values than may ever be waited for is taken when no other waits.

        Raises:
            BusyError: too many digests are waited for.
        """
        sealed = dict(event)
        present = [name for name in pipeline.sensitive if isinstance(event.get(name), str)]
        slow = [name for name in present if pipeline.fields[name].sensitive == "argon2id"]
        for name in set(present) - set(slow):
            sealed[name] = self._hmac(self._pepper(), f"{pipeline.name}/{name}", event[name]).hex()
        if not slow:
            return sealed
        if self._waiting and self._waiting + len(slow) > self._settings.seal_queue:
            raise BusyError(math.ceil(self._waiting * self._seconds / self._settings.seal_threads))
        self._waiting += len(slow)
        SEALING.set(self._waiting)
        try:
            loop, pepper = asyncio.get_running_loop(), self._pepper()
            made = [
                loop.run_in_executor(self._pool, self._argon2id, pepper, f"{pipeline.name}/{name}", event[name])
                for name in slow
            ]
            sealed.update(zip(slow, await asyncio.gather(*made), strict=True))
        finally:
            self._waiting -= len(slow)
            SEALING.set(self._waiting)
        return sealed

    def close(self) -> None:
        """Let what is being made be finished."""
        self._pool.shutdown()

    @staticmethod
    def _hmac(key: bytes, place: str, value: str) -> bytes:
        # Names hold no slash, so no two places and values give one text.
        return hmac.digest(key, f"{place}/{value}".encode(), sha256)

    def _argon2id(self, pepper: bytes, place: str, value: str) -> str:
        begin = time.perf_counter()
        # A key of its own: a field that was declared hmac before has that digest on record.
        secret = self._hmac(hmac.digest(pepper, b"argon2id", sha256), place, value)
        passes, memory = self._settings.argon2_passes, self._settings.argon2_memory_kib
        salt = secrets.token_bytes(_SALT_BYTES)
        digest = hash_secret(secret, salt, passes, memory, 1, _HASH_BYTES, Type.ID).decode()
        taken = time.perf_counter() - begin
        SEAL_SECONDS.observe(taken)
        self._seconds = taken
        return digest


def _go_last() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
