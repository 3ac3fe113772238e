from __future__ import annotations

import datetime
import json
import ssl
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from levada.cluster import credentials, pki, plan
from levada.cluster.pki import SERVER, Authority, Pair
from levada.cluster.plan import ClusterPlan


def read(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes())


def names(certificate: x509.Certificate) -> tuple[str, list[str]]:
    def values(oid: x509.ObjectIdentifier) -> list[str]:
        return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid)]

    return values(NameOID.COMMON_NAME)[0], values(NameOID.ORGANIZATION_NAME)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


def test_certificate_says_who_and_what_for(authority: Authority) -> None:
    pair = authority.issue("web", name="web", groups=("a", "b"), usage=SERVER, hosts=("web", IPv4Address("127.0.0.1")))
    certificate = read(pair)
    assert names(certificate) == ("web", ["a", "b"])
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["web"]
    assert alternatives.get_values_for_type(x509.IPAddress) == [IPv4Address("127.0.0.1")]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    certificate.verify_directly_issued_by(read(authority.pair))


def test_openssl_takes_the_pair_and_the_authority(authority: Authority) -> None:
    pair = authority.issue("web", name="web", usage=SERVER, hosts=("web",))
    context = ssl.create_default_context(cafile=str(authority.pair.certificate))
    context.load_cert_chain(pair.certificate, pair.key)


def test_what_fits_is_kept(authority: Authority) -> None:
    first = read(authority.issue("web", name="web", hosts=("web",)))
    again = Authority(authority.directory, "ca")
    assert read(again.issue("web", name="web", hosts=("web",))) == first


@pytest.mark.parametrize("change", ["name", "group", "host", "key", "authority", "age"])
def test_what_does_not_fit_is_issued_again(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    pair = authority.issue("web", name="web", hosts=("web",))
    first = read(pair)
    if change == "key":
        pair.key.write_bytes(authority.pair.key.read_bytes())
    if change == "authority":
        authority = Authority(tmp_path / "other", "ca")
        for file in (pair.certificate, pair.key):
            file.rename(authority.directory / file.name)
    if change == "age":
        later = datetime.datetime.now(datetime.UTC) + pki.LIFE - pki.RENEW_BEFORE + datetime.timedelta(hours=1)
        monkeypatch.setattr(pki, "_now", lambda: later)
    second = authority.issue(
        "web",
        name="other" if change == "name" else "web",
        groups=("g",) if change == "group" else (),
        hosts=("other",) if change == "host" else ("web",),
    )
    assert read(second) != first
    key = serialization.load_pem_private_key(second.key.read_bytes(), None)
    assert key.public_key() == read(second).public_key()


def test_every_component_is_who_kubernetes_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "STATE", tmp_path)
    made = ClusterPlan("a", 0, 2)
    issued = credentials.issue(made)
    folder = made.directory / "pki"

    def who(file: str) -> tuple[str, list[str]]:
        return names(read(Pair(folder / f"{file}.crt", folder / f"{file}.key")))

    assert who("admin") == ("levada-admin", ["system:masters"])
    assert who("controller-manager") == ("system:kube-controller-manager", [])
    assert who("scheduler") == ("system:kube-scheduler", [])
    assert who("a-2-kubelet") == ("system:node:a-2", ["system:nodes"])
    assert who("a-2-proxy") == ("system:kube-proxy", [])
    read(issued.front_proxy_client).verify_directly_issued_by(read(issued.front_proxy.pair))
    alternatives = read(issued.apiserver).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {made.api_service, made.control_address, made.loopback} == set(
        alternatives.get_values_for_type(x509.IPAddress)
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    credentials.issue(made)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
    assert set(modes.values()) == {"0o600"}, modes


def test_kubeconfig_needs_no_other_file(authority: Authority, tmp_path: Path) -> None:
    user = authority.issue("admin", name="admin")
    file = tmp_path / "kubeconfig"
    pki.write_kubeconfig(file, name="a", server="https://127.0.0.1:1", authority=authority, user=user)
    content = json.loads(file.read_text())
    assert content["current-context"] == "a"
    assert content["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    assert file.stat().st_mode & 0o777 == 0o600
