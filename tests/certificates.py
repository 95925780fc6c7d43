"""Certificates for tests, and the folder of a Secret in which they are renewed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

LOCALHOST = (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))
FOR_CLIENTS = ExtendedKeyUsageOID.CLIENT_AUTH
FOR_SERVERS = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class Pair:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @property
    def crt(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def pem_of_key(self, password: bytes = b"") -> bytes:
        """Return the key in PEM, encrypted if there is a *password*."""
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Write both to *folder*; return their paths."""
        crt, key = folder / f"{name}.crt", folder / f"{name}.key"
        crt.write_bytes(self.crt)
        key.write_bytes(self.pem_of_key())
        return str(crt), str(key)


class Authority:
    """Somebody who signs certificates."""

    def __init__(self, name: str = "authority") -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self._pair = Pair(self._sign(self.name, self._key, [(constraints, True)]), self._key)

    @property
    def crt(self) -> bytes:
        """Its own certificate in PEM."""
        return self._pair.crt

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        days: float = 1,
    ) -> x509.Certificate:
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder(self.name, name, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, SHA256())

    def pair(
        self,
        *common_names: str,
        alternatives: Sequence[x509.GeneralName] = (),
        usage: ObjectIdentifier = FOR_CLIENTS,
        days: float = 1,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> Pair:
        """Return a certificate that it has signed."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names])
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([usage]), False),
        ]
        if alternatives:
            extensions.append((x509.SubjectAlternativeName(alternatives), False))
        return Pair(self._sign(name, key, extensions, days), key)

    def server(self, key: rsa.RSAPrivateKey | None = None) -> Pair:
        """Return a certificate for a daemon on this machine."""
        return self.pair("nas", alternatives=LOCALHOST, usage=FOR_SERVERS, key=key)


class Secret:
    """A folder as the kubelet makes it of a Secret: all files change by the rename of one link."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        self._folder = folder
        self._versions = itertools.count()
        folder.mkdir()
        self.put(pair.crt, pair.pem_of_key())
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")

    @property
    def options(self) -> list[str]:
        """Options of a daemon that uses it."""
        return [f"--tls-cert={self._folder}/tls.crt", f"--tls-key={self._folder}/tls.key"]

    def put(self, crt: bytes | None, key: bytes | None) -> None:
        """Let it have these contents; None for a file that is missing."""
        version = self._folder / f"..version-{next(self._versions)}"
        version.mkdir()
        for name, content in (("tls.crt", crt), ("tls.key", key)):
            if content is not None:
                (version / name).write_bytes(content)
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self._folder / "..data")

    def renew(self, pair: Pair) -> None:
        """Let it have *pair*."""
        self.put(pair.crt, pair.pem_of_key())
