"""Whom a certificate of a client is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import reactor

from httpnas.access import authentication
from httpnas.access.authentication import Authentication
from httpnas.access.certificates import BadCertificate, ClientCertificates
from httpnas.access.errors import Unauthenticated
from tests.access import files
from tests.certificates import Authority, Pair

ALTERNATIVES = [
    x509.DNSName("loader.example"),
    x509.RFC822Name("loader@example.org"),
    x509.UniformResourceIdentifier("spiffe://a.example/loader"),
]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def der(pair: Pair) -> bytes:
    return pair.certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "principal, name",
    [
        ("CN", "loader"),
        ("DNS", "loader.example"),
        ("email", "loader@example.org"),
        ("URI", "spiffe://a.example/loader"),
    ],
)
def test_the_name_is_taken_from_where_the_file_says(
    authority: Authority, principal: str, name: str
) -> None:
    pair = authority.pair("loader", alternatives=ALTERNATIVES)
    found, expires = ClientCertificates(principal, "cert/").identify(der(pair))
    assert (found.name, found.kind, found.groups) == (f"cert/{name}", "certificate", frozenset())
    assert expires == pair.certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize(
    "names", [(), ("a", "b"), ("a b",), ("a\n",), ("a\x85",), ("\u00a0",)], ids=repr
)
def test_nobody_is_a_certificate_that_could_be_two_or_could_not_be_in_a_rule(
    authority: Authority, names: tuple[str, ...]
) -> None:
    with pytest.raises(BadCertificate, match="needs one CN"):
        ClientCertificates("CN", "cert/").identify(der(authority.pair(*names)))


def test_two_alternative_names_of_the_kind_are_nobody(authority: Authority) -> None:
    pair = authority.pair(alternatives=[x509.DNSName("a"), x509.DNSName("b")])
    with pytest.raises(BadCertificate, match="needs one DNS"):
        ClientCertificates("DNS", "cert/").identify(der(pair))


def test_what_cannot_be_read_is_nobody() -> None:
    with pytest.raises(BadCertificate, match="cannot be read"):
        ClientCertificates("CN", "cert/").identify(b"nonsense")


@pytest_twisted.ensureDeferred
async def test_a_certificate_ends_on_a_connection_that_is_open(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = Authentication(reactor, str(files.write(tmp_path, "[certificates]\n")))
    shown = der(authority.pair("loader"))
    for _ in range(2):
        subject = await auth.identify(b"GET", certificate=shown)
        assert (subject.name, subject.groups) == ("cert/loader", frozenset({"authenticated"}))
    expires = authority.pair("x").certificate.not_valid_after_utc.timestamp()
    clock = type("clock", (), {"time": staticmethod(lambda: expires + 1)})
    monkeypatch.setattr(authentication, "time", clock)
    monkeypatch.setattr("httpnas.access.certificates.time", clock)
    with pytest.raises(Unauthenticated, match="has expired"):
        await auth.identify(b"GET", certificate=shown)
