"""Certificates of clients: who asks, of what TLS has verified."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from httpnas.files.job import Principal

#: What a name may be: it stands in rules, and in lines of the log.
_NAME = re.compile(r"[!-~\u00a1-\U0010ffff]{1,255}\Z")


class BadCertificate(Exception):
    """A certificate is good for TLS, and does not say who asks."""


def _alternatives(kind: type[x509.GeneralName]) -> Callable[[x509.Certificate], list[str]]:
    def names(certificate: x509.Certificate) -> list[str]:
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return []
        return [str(name.value) for name in found.value if isinstance(name, kind)]

    return names


def _common_names(certificate: x509.Certificate) -> list[str]:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [str(name.value) for name in found]


#: Where the name of a principal may stand: the common name of the subject (RFC 5280 section
#: 4.1.2.6), or a subject alternative name (section 4.2.1.6).
NAMES: Mapping[str, Callable[[x509.Certificate], list[str]]] = {
    "CN": _common_names,
    "DNS": _alternatives(x509.DNSName),
    "email": _alternatives(x509.RFC822Name),
    "URI": _alternatives(x509.UniformResourceIdentifier),
}


@dataclass(frozen=True, slots=True)
class ClientCertificates:
    """Whom certificates are for.

    :ivar principal: which of :data:`NAMES` is the name.
    :ivar prefix: what comes before the names of principals.
    """

    principal: str
    prefix: str

    def identify(self, der: bytes) -> tuple[Principal, float]:
        """Return whom a certificate is for, and when it expires in seconds since the epoch.

        :param der: the certificate, which has been verified.
        :raises BadCertificate: when it has expired since, or does not have one name.
        """
        try:
            certificate = x509.load_der_x509_certificate(der)
            expires = certificate.not_valid_after_utc.timestamp()
            names = NAMES[self.principal](certificate)
        except ValueError:
            raise BadCertificate("The certificate cannot be read.") from None
        if time.time() >= expires:
            raise BadCertificate("The certificate has expired.")
        if len(names) != 1 or not _NAME.match(names[0]):
            raise BadCertificate(f"The certificate needs one {self.principal} without spaces.")
        return Principal(self.prefix + names[0], "certificate"), expires
