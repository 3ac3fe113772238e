"""Certificates of a cluster: two authorities, and what they sign, renewed while there is still time."""

import base64
import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from levada.cluster.errors import ClusterError
from levada.cluster.files import write

AUTHORITY_LIFE = datetime.timedelta(days=3650)
LIFE = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=60)
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM files."""

    certificate: Path
    key: Path


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write(path, key.private_bytes(encoding, form, serialization.NoEncryption()))
    return key


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ClusterError(f"{path} is not a key of this program's making: remove the folder it is in")
    return key


def _subject(name: str, groups: Iterable[str] = ()) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """A certificate authority in two files, made if they are missing."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
        if not self.pair.certificate.exists():
            self._create(name)
        self._key = _load_key(self.pair.key)
        self._certificate = x509.load_pem_x509_certificate(self.pair.certificate.read_bytes())

    def _create(self, name: str) -> None:
        key = _new_key(self.pair.key)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_subject(name))
            .issuer_name(_subject(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - datetime.timedelta(hours=1))
            .not_valid_after(_now() + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        write(self.pair.certificate, certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        file: str,
        *,
        name: str,
        groups: tuple[str, ...] = (),
        usage: x509.ObjectIdentifier = CLIENT,
        hosts: tuple[str | IPv4Address, ...] = (),
    ) -> Pair:
        """The pair `file`.crt, `file`.key for a subject; kept while it fits and has two months left."""
        pair = Pair(self.directory / f"{file}.crt", self.directory / f"{file}.key")
        alternatives = x509.SubjectAlternativeName(
            [x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host) for host in hosts]
        )
        subject = _subject(name, groups)
        if self._serves(pair, subject, alternatives):
            return pair
        key = _new_key(pair.key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - datetime.timedelta(hours=1))
            .not_valid_after(_now() + LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        write(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        return pair

    def _serves(self, pair: Pair, subject: x509.Name, alternatives: x509.SubjectAlternativeName) -> bool:
        if not (pair.certificate.exists() and pair.key.exists()):
            return False
        certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        if certificate.subject != subject or certificate.not_valid_after_utc < _now() + RENEW_BEFORE:
            return False
        if certificate.public_key() != _load_key(pair.key).public_key():
            return False  # an earlier run was killed between the two files
        try:
            certificate.verify_directly_issued_by(self._certificate)
            held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (InvalidSignature, ValueError):
            return False
        except x509.ExtensionNotFound:
            held = x509.SubjectAlternativeName([])
        return held == alternatives


def signing_key(path: Path) -> Path:
    """A private key that only signs (service-account tokens), made if it is missing."""
    if not path.exists():
        _new_key(path)
    return path


def public_key(path: Path) -> bytes:
    """The public half of a private key file, PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return _load_key(path).public_key().public_bytes(serialization.Encoding.PEM, form)


def write_kubeconfig(path: Path, *, name: str, server: str, authority: Authority, user: Pair) -> None:
    """Write a kubeconfig that needs no other file; its context has the given name."""

    def embedded(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {"server": server, "certificate-authority-data": embedded(authority.pair.certificate)},
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": embedded(user.certificate),
                    "client-key-data": embedded(user.key),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    write(path, (json.dumps(content, indent=2) + "\n").encode())  # JSON is YAML
