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
from twisted.web import http

from tests.harness import Nas, connect, receive_all


@pytest_twisted.ensureDeferred
async def test_http_1_1_is_chosen_of_what_a_client_offers(
    nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "H2_ENABLED", True)
    pem = tmp_path / "pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=nas -days 1 -keyout - -out -"
    pem.write_bytes(subprocess.run(command.split(), capture_output=True, check=True).stdout)
    options = PrivateCertificate.loadPEM(pem.read_bytes()).options()
    port: Any = IReactorSSL(reactor).listenSSL(0, nas.site, options, interface="127.0.0.1")
    number = port.getHost().port

    def talk() -> tuple[str | None, bytes]:
        context = ssl.create_default_context(cafile=str(pem))
        context.check_hostname = False
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(connect(number)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: nas\r\nConnection: close\r\n\r\n")
            return client.selected_alpn_protocol(), receive_all(client)

    chosen, answer = await nas.in_thread(talk)
    await port.stopListening()
    assert chosen == "http/1.1"
    assert answer.startswith(b"HTTP/1.1 200 ")
