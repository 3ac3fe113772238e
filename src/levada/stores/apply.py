"""Roles, databases and buckets: made where they are missing, left alone where they are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import boto3
import psycopg
from botocore.config import Config
from botocore.exceptions import ClientError
from psycopg import sql
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from levada.config import ConfigError, PostgresSettings, S3Settings, read_secret

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECT_SECONDS: Final = 5

Report = Callable[[str], None]
"""Takes one line on one object."""


class StoresSettings(BaseSettings):
    """What there must be: LEVADA_STORES__DATABASES and LEVADA_STORES__BUCKETS, both JSON."""

    model_config = SettingsConfigDict(env_prefix="LEVADA_STORES__", frozen=True, env_ignore_empty=True)

    databases: dict[str, str] = {}
    """Role, by the name of its folder of credentials → the database that it owns."""
    buckets: tuple[str, ...] = ()

    @classmethod
    def read(cls) -> Self:
        """The settings of this process.

        Raises:
            ConfigError: a variable is not JSON of the right form.
        """
        try:
            return cls()
        except (SettingsError, ValidationError) as error:
            raise ConfigError(
                'LEVADA_STORES__DATABASES must be JSON as {"role": "database"}, LEVADA_STORES__BUCKETS as ["bucket"]'
            ) from error


@dataclass(frozen=True)
class Role:
    """A PostgreSQL role."""

    name: str
    password: str


def role_in(folder: Path) -> Role:
    """The role whose credentials are the files ``username`` and ``password`` of a folder."""
    return Role(read_secret(folder / "username"), read_secret(folder / "password"))


def connect(postgres: PostgresSettings, role: Role, database: str) -> psycopg.Connection[tuple[object, ...]]:
    """A connection of one role to one database."""
    return psycopg.connect(
        host=postgres.host,
        port=postgres.port,
        sslmode=postgres.sslmode,
        dbname=database,
        user=role.name,
        password=role.password,
        connect_timeout=_CONNECT_SECONDS,
        autocommit=True,
    )


def apply_postgres(postgres: PostgresSettings, owners: Mapping[str, Role], report: Report) -> None:
    """Make each database with its owner, the one role that may connect to it.

    Raises:
        psycopg.Error: PostgreSQL cannot be reached or refuses.
    """
    with connect(postgres, role_in(postgres.credentials), postgres.database) as connection:
        for database, role in owners.items():
            _apply_role(connection, role, report)
            _apply_database(connection, database, role, report)
            if not _can_log_in(postgres, role, database):
                _set_password(connection, role)
                report(f"role {role.name}: password set")


def _apply_role(connection: psycopg.Connection[tuple[object, ...]], role: Role, report: Report) -> None:
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role.name]).fetchone():
        report(f"role {role.name}: unchanged")
        return
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role.name)))
    _set_password(connection, role)
    report(f"role {role.name}: created")


def _set_password(connection: psycopg.Connection[tuple[object, ...]], role: Role) -> None:
    # The verifier is made here: the clear password would end in the server's log where statements are logged.
    verifier = connection.pgconn.encrypt_password(role.password.encode(), role.name.encode(), b"scram-sha-256")
    connection.execute(
        sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role.name), sql.Literal(verifier.decode()))
    )


def _apply_database(
    connection: psycopg.Connection[tuple[object, ...]], database: str, role: Role, report: Report
) -> None:
    name, owner = sql.Identifier(database), sql.Identifier(role.name)
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone():
        report(f"database {database}: unchanged")
    else:
        # An administrator who is no superuser, as in managed services, may give a database only to a role it is in.
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(owner))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))
        report(f"database {database}: created")
    connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(name))


def _can_log_in(postgres: PostgresSettings, role: Role, database: str) -> bool:
    try:
        connect(postgres, role, database).close()
    except psycopg.OperationalError:
        return False
    return True


def s3_client(s3: S3Settings) -> S3Client:
    """A client that gives up within seconds, for those who wait and try again."""
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        config=Config(
            connect_timeout=5,
            read_timeout=20,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path" if s3.path_style else "auto"},
        ),
    )


def apply_buckets(s3: S3Settings, buckets: Iterable[str], report: Report) -> None:
    """Make each bucket.

    Raises:
        botocore.exceptions.BotoCoreError: S3 cannot be reached.
        botocore.exceptions.ClientError: it refuses.
    """
    client = s3_client(s3)
    for bucket in buckets:
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            if s3.region == "us-east-1":  # the one region that must not be named
                client.create_bucket(Bucket=bucket)
            else:
                client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": s3.region})  # type: ignore[typeddict-item]
            report(f"bucket {bucket}: created")
        else:
            report(f"bucket {bucket}: unchanged")
