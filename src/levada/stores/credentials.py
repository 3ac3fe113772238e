"""Credentials that nobody has to invent: made once as Kubernetes Secrets, then never changed.

A file says which keys each Secret must have and how a missing one is generated. Existing keys are left as they are,
whoever made them, so this runs at every rollout.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from levada.config import ConfigError, read_secret
from levada.errors import UserError

MANAGED_BY: Final = "levada-credentials"
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_ATTEMPTS: Final = 10

Report = Callable[[str], None]
"""Takes one line on one object."""


class CredentialsError(UserError):
    """A Secret that could not be made; the message names it."""


class _Generator(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(_Generator):
    """A value that is no secret, such as a user name."""

    value: str


class Random(_Generator):
    """That many random bytes, as URL-safe base64."""

    random: Annotated[int, Field(ge=16, le=1024)]


class Fernet(_Generator):
    """A Fernet key."""

    fernet: Literal[True]


class ApiKeysOf(_Generator):
    """The collector's file of key digests, made from clear keys in other Secrets."""

    keys: Annotated[tuple[Annotated[str, StringConstraints(pattern=r"^[^/]+/[^/]+$")], ...], Field(alias="apiKeysOf")]
    """``<secret>/<key>``, at least one."""


Spec = dict[str, dict[str, Value | Random | Fernet | ApiKeysOf]]
"""Secret name → key → generator."""

_SPEC: TypeAdapter[Spec] = TypeAdapter(Spec)


def load_spec(path: Path) -> Spec:
    """The file that says which Secrets there must be.

    Raises:
        ConfigError: it cannot be read or is not of the form.
    """
    try:
        return _SPEC.validate_json(read_secret(path))
    except ValidationError as error:
        problems = {".".join(map(str, problem["loc"][:2])) for problem in error.errors()}
        raise ConfigError(
            f"{path}: {', '.join(sorted(problems))}: give one of value, random (bytes), fernet (true), apiKeysOf"
        ) from error


class Cluster:
    """The Secrets of one namespace, by the Kubernetes API."""

    def __init__(self, client: httpx.Client, namespace: str) -> None:
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    @classmethod
    def of_this_pod(cls) -> Cluster:
        """The namespace this pod runs in, with its service account.

        Raises:
            ConfigError: this is no pod, or its service-account token is not mounted.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
        if host is None:
            raise ConfigError("KUBERNETES_SERVICE_HOST is not set: this command runs in a pod")
        client = httpx.Client(
            base_url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
            headers={"Authorization": f"Bearer {read_secret(_ACCOUNT / 'token')}"},
            verify=ssl.create_default_context(cafile=_ACCOUNT / "ca.crt"),
            timeout=10,
        )
        return cls(client, read_secret(_ACCOUNT / "namespace"))

    def get(self, name: str) -> dict[str, Any] | None:
        """A Secret, or None."""
        answer = self._client.get(f"{self._path}/{name}")
        return None if answer.status_code == 404 else self._checked(answer, name)

    def create(self, name: str, labels: dict[str, str], data: dict[str, str]) -> bool:
        """Make a Secret; False if somebody else was first."""
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {"name": name, "labels": labels},
            "data": data,
        }
        answer = self._client.post(self._path, json=body)
        return answer.status_code != 409 and bool(self._checked(answer, name))

    def add(self, name: str, version: str, data: dict[str, str]) -> bool:
        """Add keys to a Secret as it was at ``version``; False if it has changed since."""
        answer = self._client.patch(
            f"{self._path}/{name}",
            json={"metadata": {"resourceVersion": version}, "data": data},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        return answer.status_code != 409 and bool(self._checked(answer, name))

    @staticmethod
    def _checked(answer: httpx.Response, name: str) -> dict[str, Any]:
        if answer.is_error:
            # The body of a refusal tells verb and resource; it never holds data of a Secret.
            reason = answer.json().get("message", "") if "json" in answer.headers.get("content-type", "") else ""
            raise CredentialsError(f"Secret {name}: {answer.status_code} {answer.reason_phrase} {reason}".rstrip())
        body: dict[str, Any] = answer.json()
        return body


def apply(cluster: Cluster, spec: Spec, *, instance: str, report: Report) -> None:
    """Make what is missing.

    Raises:
        CredentialsError: the API refused, or ``apiKeysOf`` names a key that does not exist.
        httpx.HTTPError: the API cannot be reached.
    """
    labels = {"app.kubernetes.io/managed-by": MANAGED_BY, "app.kubernetes.io/instance": instance}
    for name in _in_order(spec):
        _apply_one(cluster, name, spec[name], labels, report)


def _in_order(spec: Spec) -> Iterator[str]:
    """Secrets that are derived from others come last."""
    derived = [name for name, keys in spec.items() if any(isinstance(key, ApiKeysOf) for key in keys.values())]
    yield from (name for name in spec if name not in derived)
    yield from derived


def _apply_one(
    cluster: Cluster,
    name: str,
    wanted: dict[str, Value | Random | Fernet | ApiKeysOf],
    labels: dict[str, str],
    report: Report,
) -> None:
    for _ in range(_ATTEMPTS):
        present = cluster.get(name)
        has = {} if present is None else present.get("data") or {}
        missing = {key: _encoded(_generate(cluster, generator)) for key, generator in wanted.items() if key not in has}
        if present is None:
            done = cluster.create(name, labels, missing)
        else:
            done = not missing or cluster.add(name, present["metadata"]["resourceVersion"], missing)
        if done:
            made = f"made {', '.join(missing)}" if missing else "unchanged"
            report(f"Secret {name}: {made}")
            return
    raise CredentialsError(f"Secret {name}: changed by others {_ATTEMPTS} times in a row, run this again")


def _generate(cluster: Cluster, generator: Value | Random | Fernet | ApiKeysOf) -> str:
    match generator:
        case Value():
            return generator.value
        case Random():
            return secrets.token_urlsafe(generator.random)
        case Fernet():
            return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        case ApiKeysOf():
            return json.dumps(
                {
                    "default" if len(generator.keys) == 1 else source.partition("/")[0]: {
                        "sha256": hashlib.sha256(_read(cluster, source)).hexdigest(),
                        "pipelines": ["*"],
                    }
                    for source in generator.keys
                }
            )


def _read(cluster: Cluster, source: str) -> bytes:
    name, _, key = source.partition("/")
    present = cluster.get(name)
    data = {} if present is None else present.get("data") or {}
    if key not in data:
        raise CredentialsError(f"Secret {name} has no key {key}, which apiKeysOf names")
    return base64.b64decode(data[key])


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()
