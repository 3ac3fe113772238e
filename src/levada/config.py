"""Settings of a process, from environment variables named ``LEVADA_<BLOCK>__<SETTING>``.

Credentials are never in the environment: a block names the folder of a mounted Secret and reads its files when
they are needed, so that a rotated password is seen without a restart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from levada.errors import UserError


class ConfigError(UserError):
    """A setting that is missing or wrong; the message names the variable or file."""


def read_secret(path: Path) -> str:
    """Content of a mounted credential file.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    try:
        value = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"credential file {path} cannot be read: {error.strerror}") from error
    if not value:
        raise ConfigError(f"credential file {path} is empty")
    return value


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Block):
    """How to reach Kafka."""

    bootstrap: str
    protocol: str = "SASL_PLAINTEXT"
    mechanism: str = "SCRAM-SHA-512"
    ca: Path | None = None
    credentials: Path | None = None
    """Folder with the files ``username`` and ``password``."""
    replication_factor: int = 3
    """Brokers that keep a copy of each new topic."""

    def client(self) -> dict[str, Any]:
        """Connection settings in librdkafka's names; holds the password, never log it."""
        config: dict[str, Any] = {"bootstrap.servers": self.bootstrap, "security.protocol": self.protocol}
        if self.protocol.startswith("SASL"):
            if self.credentials is None:
                raise ConfigError(f"LEVADA_KAFKA__CREDENTIALS is not set, {self.protocol} needs it")
            config["sasl.mechanism"] = self.mechanism
            config["sasl.username"] = read_secret(self.credentials / "username")
            config["sasl.password"] = read_secret(self.credentials / "password")
        if self.ca is not None:
            config["ssl.ca.location"] = str(self.ca)
        return config

    def producer(self) -> dict[str, Any]:
        """:meth:`client` for those who write: each message once, by all replicas, with its key's others."""
        return {
            **self.client(),
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "partitioner": "consistent",  # the default sends events with an empty key anywhere
            "allow.auto.create.topics": False,
        }


class PostgresSettings(_Block):
    """How to reach PostgreSQL."""

    host: str
    port: int = 5432
    sslmode: str = "prefer"
    database: str
    credentials: Path
    """Folder with the files ``username`` and ``password``."""

    def url(self, driver: str = "postgresql+psycopg") -> str:
        """SQLAlchemy URL; holds the password, never log it."""
        username = quote(read_secret(self.credentials / "username"), safe="")
        password = quote(read_secret(self.credentials / "password"), safe="")
        return f"{driver}://{username}:{password}@{self.host}:{self.port}/{self.database}?sslmode={self.sslmode}"


class S3Settings(_Block):
    """How to reach the object store."""

    endpoint: str | None = None
    region: str = "us-east-1"
    path_style: bool = True
    credentials: Path | None = None
    """Folder with the files ``access-key-id`` and ``secret-access-key``; without it the SDK's own chain is used."""
    bucket_lake: str = "lake"

    @property
    def access_key(self) -> str | None:
        """Access key id, or None for the SDK's own chain."""
        return None if self.credentials is None else read_secret(self.credentials / "access-key-id")

    @property
    def secret_key(self) -> str | None:
        """Secret access key, or None for the SDK's own chain."""
        return None if self.credentials is None else read_secret(self.credentials / "secret-access-key")


class MlflowSettings(_Block):
    """How to reach the model registry."""

    uri: str


class SinkSettings(_Block):
    """One sink of those that share a topic."""

    index: int = 0
    """Which of the pipeline's ``stream.replicas`` sinks this is; partition p belongs to sink p mod replicas."""
    window_ids: PositiveInt = 10_000_000
    """Most event ids that the dedupe window keeps, some 23 bytes each; beyond it the oldest are forgotten early."""


class HttpSettings(_Block):
    """What each connection to an HTTP server of ours may take, and how many there may be."""

    port: int = 8080
    header_timeout: float = 5.0
    """Seconds from the first byte of a request to the end of its headers."""
    body_timeout: float = 30.0
    """Seconds from there to the end of its body."""
    max_header_bytes: int = 16_384
    max_connections: int = 1024


class CollectorSettings(HttpSettings):
    """The HTTP collector."""

    api_keys_file: Path = Path("/etc/levada/credentials/api-keys/keys.json")
    max_body_bytes: int = 1_048_576
    delivery_timeout: float = 1.5
    """Seconds that a broker has to acknowledge an event before the answer is 503."""
    max_in_flight: int = 2000
    """Requests that may be read or wait for an acknowledgement at once; the next one is answered 503."""
    max_bulk_bytes: int = 8_388_608
    """Largest body with many events; each of them may have ``max_body_bytes``."""
    max_bulk_lines: int = 10_000
    pepper_file: Path = Path("/etc/levada/credentials/pepper/pepper")
    """Secret that is mixed into every digest of a sensitive value."""
    argon2_memory_kib: int = 32_768
    argon2_passes: int = 8
    seal_threads: int = 1
    """Argon2id digests made at once; each takes ``argon2_memory_kib`` while it is made."""
    seal_queue: int = 32
    """Digests that may wait or be made at once; an event beyond it is answered 429."""


class PredictorSettings(HttpSettings):
    """The predictor."""

    poll_seconds: float = 5.0
    """Mean time between two looks at the registry."""
    api_keys_file: Path | None = None
    """File of API keys, as the collector's; without one nobody is asked for a key."""
    cache: Path = Path("/var/cache/levada/models")
    """Folder for the models that served last; a process that starts without the registry begins with them."""
    max_body_bytes: int = 8_388_608


class Settings(BaseSettings):
    """All settings of a process; a role sets the blocks it uses."""

    model_config = SettingsConfigDict(
        env_prefix="LEVADA_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    pipelines: Path = Path("/etc/levada/pipelines")
    """Folder with one file a declared pipeline."""
    pipeline: str | None = None
    """The pipeline of a process that serves one only."""
    health_port: int = 8090
    log_level: str = "INFO"
    kafka: KafkaSettings | None = None
    postgres: PostgresSettings | None = None
    s3: S3Settings | None = None
    mlflow: MlflowSettings | None = None
    gate_key_file: Path | None = None
    """Key that signs and verifies the gate's outcome."""
    sink: SinkSettings = SinkSettings()
    collector: CollectorSettings = CollectorSettings()
    predictor: PredictorSettings = PredictorSettings()


def settings() -> Settings:
    """The settings of this process.

    Raises:
        ConfigError: naming each environment variable that is missing or wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                f"LEVADA_{'__'.join(str(part).upper() for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors()
            )
        ) from error


_T = TypeVar("_T")


def required(block: _T | None, variable: str) -> _T:
    """The block, or a :class:`ConfigError` that names the variable to set."""
    if block is None:
        raise ConfigError(f"{variable} is not set, this command needs it")
    return block
