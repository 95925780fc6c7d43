"""Over TLS, only what the daemon speaks is offered."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorSSL
from twisted.internet.ssl import PrivateCertificate
from twisted.logger import LogLevel
from twisted.web import http

from tests.harness import Nas, connect, logged, receive_all, wait_until


class Listening:
    """A port of *nas* for TLS."""

    def __init__(self, nas: Nas, folder: Path) -> None:
        self._pem = folder / "pem"
        command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=nas -days 1 -keyout - -out -"
        made = subprocess.run(command.split(), capture_output=True, check=True)
        self._pem.write_bytes(made.stdout)
        options = PrivateCertificate.loadPEM(self._pem.read_bytes()).options()
        self.port: Any = IReactorSSL(reactor).listenSSL(0, nas.site, options, interface="127.0.0.1")

    def connect(self) -> ssl.SSLSocket:
        """Return a connection that raises when it ends otherwise than TLS says."""
        context = ssl.create_default_context(cafile=str(self._pem))
        context.check_hostname = False
        context.set_alpn_protocols(["h2", "http/1.1"])
        plain = connect(self.port.getHost().port)
        return context.wrap_socket(plain, suppress_ragged_eofs=False)


@pytest_twisted.ensureDeferred
async def test_http_1_1_is_chosen_of_what_a_client_offers(
    nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "H2_ENABLED", True)
    listening = Listening(nas, tmp_path)

    def talk() -> tuple[str | None, bytes]:
        with listening.connect() as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: nas\r\nConnection: close\r\n\r\n")
            return client.selected_alpn_protocol(), receive_all(client)

    chosen, answer = await nas.in_thread(talk)
    await listening.port.stopListening()
    assert chosen == "http/1.1"
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /none HTTP/1.1\r\nHost: nas\r\nContent-Length: 9999999\r\n\r\n123", 404),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_connection_ends_as_tls_has_it_after_a_refusal(
    nas: Nas, tmp_path: Path, sent: bytes, status: int
) -> None:
    listening = Listening(nas, tmp_path)

    def talk() -> bytes:
        with listening.connect() as client:
            client.sendall(sent)
            answer = receive_all(client)
            client.unwrap().close()
        wait_until(lambda: not nas.site.channels, "the connection to be closed")
        return answer

    with logged() as events:
        answer = await nas.in_thread(talk)
    await listening.port.stopListening()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert not [event for event in events if event["log_level"] >= LogLevel.error]
