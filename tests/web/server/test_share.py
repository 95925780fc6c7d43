"""How many connections a client may have."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest_twisted
from twisted.internet import reactor

from httpnas.fields.clients import network_of
from httpnas.web.server.places import Share
from tests.harness import Client, Nas, let_daemon_read, wait_until

MOST = 3


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    options: dict[str, Any] = {"connections-per-client": MOST}
    nas = Nas(tmp_path / "root", **options)
    yield nas
    await nas.stop()


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: nas\r\n\r\n" % path.encode()


class Other(Client):
    """A client at another address of loopback."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.socket.close()
        self.socket = socket.create_connection(
            ("127.0.0.1", port), timeout=20, source_address=("127.0.0.2", 0)
        )


@pytest_twisted.ensureDeferred
async def test_who_has_too_many_is_told_to_come_again_and_others_are_served(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"x")

    def talk() -> None:
        clients = [Client(nas.port) for _ in range(MOST)]
        let_daemon_read()
        for _ in range(3):
            with Client(nas.port) as more:
                more.send(get("/file/f"))
                status, headers, body = more.answer()
                assert (status, headers["retry-after"]) == (503, "5")
                assert json.loads(body)["type"] == "/docs/problems#too-many-connections"
                assert headers["connection"] == "close" and more.rest() == b""
            with Client(nas.port) as operator:
                operator.send(get("/health"))
                assert operator.answer()[0] == 200
        with Other(nas.port) as other:
            other.send(get("/file/f"))
            assert other.answer()[::2] == (200, b"x")
        for client in clients:
            client.send(get("/file/f"))
            assert client.answer()[0] == 200
        clients.pop().socket.close()
        wait_until(lambda: len(nas.site.channels) < MOST, "the connection to be missed")
        with Client(nas.port) as again:
            again.send(get("/file/f"))
            assert again.answer()[0] == 200, "what was closed counts no longer"
        for client in clients:
            client.socket.close()

    await nas.in_thread(talk)
    metrics = (await nas.fetch("GET", "/metrics"))[1].decode()
    assert 'httpnas_problems_total{code="too-many-connections"} 3.0' in metrics
    await nas.at_rest()
    await nas.in_thread(wait_until, lambda: len(nas.site.channels) <= 1, "all to be closed")
    assert sum(nas.site.share._taken.values()) == len(nas.site.channels)


@pytest_twisted.ensureDeferred
async def test_proxies_may_have_any_number(tmp_path: Path) -> None:
    options: dict[str, Any] = {"connections-per-client": 1, "proxies": [network_of("127.0.0.0/8")]}
    nas = Nas(tmp_path / "root", **options)

    def talk() -> None:
        for client in [Client(nas.port) for _ in range(5)]:
            client.send(get("/file/"))
            assert client.answer()[0] == 200
            client.socket.close()

    await nas.in_thread(talk)
    await nas.stop()


@pytest_twisted.ensureDeferred
async def test_who_comes_by_a_unix_socket_may_have_any_number(tmp_path: Path) -> None:
    options: dict[str, Any] = {"connections-per-client": 1}
    nas = Nas(tmp_path / "root", **options)
    listening = cast(Any, reactor).listenUNIX(str(tmp_path / "s"), nas.site)

    def talk() -> None:
        peers = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for peer in peers:
            peer.settimeout(20)
            peer.connect(str(tmp_path / "s"))
            peer.sendall(get("/file/"))
            assert peer.recv(100).startswith(b"HTTP/1.1 200 ")
        for peer in peers:
            peer.close()

    await nas.in_thread(talk)
    await listening.stopListening()
    await nas.stop()


def test_nothing_is_kept_of_clients_that_have_gone() -> None:
    share = Share(2)
    for number in range(1000):
        host = f"10.0.{number // 256}.{number % 256}"
        assert share.take(host)
        share.give_back(host)
    assert not share._taken
