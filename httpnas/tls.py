"""The certificate that the daemon shows, and whose certificates it takes of clients.

What is offered is what is left of TLS when all that is known to be weak is taken away (RFC 9325):
version 1.2 with ephemeral keys and authenticated encryption, and version 1.3. OpenSSL itself takes
neither compression nor a renegotiation by the client any more. There is no resumption: each
connection makes keys of its own, and proves anew who the client is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from httpnas.access.policy import Stamp, stamp_at

T = TypeVar("T")

#: Seconds between two looks whether a file has changed.
LOOKS = 1.0
#: The most bytes of a file that are read.
_MOST = 4 << 20
#: Those of TLS 1.2; the few of TLS 1.3 are all good. Clients choose: they know what their processor
#: is fast at.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_HTTP = b"http/1.1"


class CertificateError(Exception):
    """The files cannot be used; the text names the option, the file and the reason."""


@implementer(IOpenSSLServerConnectionCreator)
class ServerCertificate:
    """Makes the TLS side of connections, with the latest good certificate.

    The files are read again when they have changed. Connections that are open keep theirs.

    :param reactor: tells the time.
    :param paths: of the files in PEM, by option: ``--tls-cert`` (the certificate, and those between
        it and its root), ``--tls-key`` and perhaps ``--tls-client-ca``: whose certificates of
        clients count. A client may show one then, and does not have to.
    :raises CertificateError: when they cannot be used.
    """

    _log = Logger()

    def __init__(self, reactor: Any, paths: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._paths = {option: os.path.abspath(path) for option, path in paths.items()}
        self._read = self._stamps()
        self._different: Sequence[Stamp | None] | None = None
        self._context = self._load()
        self._disk = ThreadPool(0, 1, name="httpnas-tls")
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return what encrypts and decrypts for *protocol*."""
        return SSL.Connection(self._context)

    def start(self) -> None:
        """Begin to look whether files change."""
        self._disk.start()
        self._looking.start(LOOKS, now=False)

    def stop(self) -> None:
        """End what was started."""
        self._looking.stop()
        self._disk.stop()

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._reload_if_changed())

    async def _reload_if_changed(self) -> None:
        """Read the files again if one has changed, and all have been the same for two looks.

        So it is not read before its key has come, when one is renamed to its name after the other.
        """
        stamps = await self._in_thread(self._stamps)
        if stamps == self._read:
            self._different = None
        elif stamps != self._different:
            self._different = stamps
        else:
            await self.reload()

    async def reload(self) -> None:
        """Read the files again; those that cannot be used leave everything as it is."""
        self._read, self._different = await self._in_thread(self._stamps), None
        try:
            self._context = await self._in_thread(self._load)
        except CertificateError as error:
            self._log.error("{error}. The certificate stays as it was before", error=error)
        except Exception:
            self._log.failure("the certificate could not be read; it stays as it was before")
        else:
            self._log.info("{path} was read again", path=self._paths["--tls-cert"])

    def _in_thread(self, call: Callable[[], T]) -> Deferred[T]:
        done: Deferred[T] = deferToThreadPool(self._reactor, self._disk, call)
        return done

    def _stamps(self) -> Sequence[Stamp | None]:
        return [stamp_at(path) for path in self._paths.values()]

    def _load(self) -> SSL.Context:
        """Return a context with what the files have (SSL_CTX_new(3)); it asks the disk.

        :raises CertificateError: when they cannot be used.
        """
        chain = self._take("--tls-cert", x509.load_pem_x509_certificates)
        key: Any = self._take("--tls-key", partial(load_pem_private_key, password=None))
        public = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if key.public_key().public_bytes(*public) != chain[0].public_key().public_bytes(*public):
            raise self._bad("--tls-key", f"it is not the key of {self._paths['--tls-cert']}")
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_alpn_select_callback(_choose)
        try:
            context.use_certificate(chain[0])
            for each in chain[1:]:
                context.add_extra_chain_cert(each)
            context.use_privatekey(key)
        except (SSL.Error, TypeError) as error:  # such as a key that is too short
            raise self._bad("--tls-cert", _reason(error)) from None
        if "--tls-client-ca" in self._paths:
            store = context.get_cert_store()
            assert store is not None
            for each in self._take("--tls-client-ca", x509.load_pem_x509_certificates):
                authority = crypto.X509.from_cryptography(each)
                store.add_cert(authority)
                context.add_client_ca(authority)
            context.set_verify(SSL.VERIFY_PEER, self._verified)
        context.set_cipher_list(_CIPHERS)
        return context

    def _take(self, option: str, parse: Callable[[bytes], T]) -> T:
        """Return what *parse* makes of the file that *option* names.

        :raises CertificateError: when it cannot be read or parsed.
        """
        try:
            with open(self._paths[option], "rb") as file:
                return parse(file.read(_MOST))
        except OSError as error:
            raise self._bad(option, error.strerror) from None
        except TypeError:
            raise self._bad(option, "it needs a password") from None
        except (ValueError, UnsupportedAlgorithm):
            what = "private key" if option == "--tls-key" else "certificate"
            raise self._bad(option, f"it has no {what} in PEM that can be read") from None

    def _bad(self, option: str, why: object) -> CertificateError:
        return CertificateError(f"{option} {self._paths[option]}: {why}")

    def _verified(
        self, connection: SSL.Connection, shown: crypto.X509, error: int, depth: int, good: int
    ) -> bool:
        """Let OpenSSL decide (SSL_CTX_set_verify(3)), and say whom it has refused."""
        if not good:
            self._log.warn(
                "audit: the certificate of {client} with the SHA-256 {digest} was refused: error "
                "{error} of X509_STORE_CTX_get_error(3)",
                client=getattr(connection.get_app_data().transport.getPeer(), "host", None),
                digest=shown.digest("sha256").decode(),
                error=error,
            )
        return bool(good)


def _choose(connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """Choose what the daemon speaks of what a client has *offered* (RFC 7301), or nothing."""
    return _HTTP if _HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _reason(error: Exception) -> object:
    """Return what OpenSSL says in the last line of its errors (ERR_get_error(3))."""
    lines = error.args[0] if error.args else None
    return lines[-1][2] if lines and isinstance(lines, list) else error
