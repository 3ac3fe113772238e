"""Waiting for what a process needs, with a line each time it is not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
from botocore.exceptions import ClientError
from confluent_kafka.admin import AdminClient

from levada.config import ConfigError, KafkaSettings, PostgresSettings, S3Settings
from levada.errors import UserError
from levada.stores.apply import Report, connect, role_in, s3_client

Probe = Callable[[], None]
"""Returns if the thing is there, raises if not."""


class WaitError(UserError):
    """What was waited for did not come in time."""


def wait(what: str, probe: Probe, *, timeout: float, report: Report) -> None:
    """Try ``probe`` every second until it passes.

    Raises:
        WaitError: ``timeout`` seconds went by.
        ConfigError: a setting is missing; waiting does not mend that.
    """
    begin = time.monotonic()
    said = ""
    while True:
        try:
            probe()
        except ConfigError:
            raise
        except Exception as error:
            problem = str(error).strip().partition("\n")[0] or type(error).__name__
        else:
            report(f"{what} is there after {time.monotonic() - begin:.1f} s")
            return
        if time.monotonic() - begin >= timeout:
            raise WaitError(f"{what} did not come within {timeout:.0f} s: {problem}")
        if problem != said:
            report(f"waiting for {what}: {problem}")
            said = problem
        time.sleep(1)


def postgres(settings: PostgresSettings) -> Probe:
    """PostgreSQL lets the configured role into the configured database."""

    def probe() -> None:
        connect(settings, role_in(settings.credentials), settings.database).close()

    return probe


def kafka(settings: KafkaSettings) -> Probe:
    """Kafka lets the configured user in and answers."""

    def probe() -> None:
        AdminClient({**settings.client(), "log_level": 0, "error_cb": lambda _: None}).list_topics(timeout=5)

    return probe


def s3(settings: S3Settings) -> Probe:
    """S3 lets the configured key in, whether or not the bucket of the lake exists already."""

    def probe() -> None:
        try:
            s3_client(settings).head_bucket(Bucket=settings.bucket_lake)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise

    return probe


def url(address: str) -> Probe:
    """The address answers with a success."""

    def probe() -> None:
        httpx.get(address, timeout=5).raise_for_status()

    return probe
