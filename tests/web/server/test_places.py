"""A full daemon: who still gets an answer, and that room comes back."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from httpnas.transfer.budget import Budget
from httpnas.web.server.channel import READ
from httpnas.web.server.places import CONNECTION, EXTRA, REQUEST, Places
from tests.harness import Client, Nas, connect, let_daemon_read, talk, twistd, wait_until

#: How many connections have a place, and how many requests have room beside them.
CONNECTIONS, REQUESTS = 8, 2


class Small:
    """Room for a few, by one of the two limits."""

    def __init__(self, limits: str) -> None:
        def limit(connection: int, request: int) -> int:
            return (CONNECTIONS * connection + REQUESTS * request) * 8 // 7

        self.memory = Budget(limit(CONNECTION.memory, REQUEST.memory))
        self.descriptors = Budget(limit(CONNECTION.descriptors, REQUEST.descriptors))
        if limits == "memory":
            self.descriptors.limit = inf
        else:
            self.memory.limit = inf
        self.places = Places(self.memory, self.descriptors)

    def fill(self) -> None:
        """Leave no room beside what is taken."""
        for budget in (self.memory, self.descriptors):
            budget.limit = budget.taken

    def is_empty(self) -> bool:
        return not self.memory.taken and not self.descriptors.taken


@pytest.fixture(params=["memory", "descriptors"])
def small(request: pytest.FixtureRequest) -> Small:
    return Small(request.param)


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path, small: Small) -> AsyncIterator[Nas]:
    nas = Nas(tmp_path / "root", places=small.places)
    yield nas
    await nas.stop()
    assert small.is_empty()


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: nas\r\n\r\n" % path.encode()


HALF = get("/health")[:-2]
UPLOAD = b"POST /file/f HTTP/1.1\r\nHost: nas\r\nContent-Length: 100\r\n\r\n"


@pytest_twisted.ensureDeferred
async def test_a_request_without_room_is_told_to_come_again_but_operators_get_their_answer(
    nas: Nas, small: Small
) -> None:
    (nas.root / "f").write_bytes(b"old")

    def talk() -> None:
        clients = [Client(nas.port) for _ in range(CONNECTIONS)]
        for client in clients:
            client.send(UPLOAD)
            let_daemon_read()
        with Client(nas.port) as other:
            other.send(get("/file/f"))
            status, headers, body = other.answer()
            assert (status, headers["retry-after"]) == (503, "5")
            assert b"/docs/problems#out-of-descriptors" in body
            for path in ("/health", "/ready", "/metrics"):
                other.send(get(path))
                assert other.answer()[0] == 200
            clients[0].send(bytes(100))
            assert clients[0].answer()[0] == 200
            other.send(get("/file/f"))
            assert other.answer()[0] == 200, "its room has come back"
        for client in clients:
            client.socket.close()

    await nas.in_thread(talk)
    await nas.at_rest()


@pytest_twisted.ensureDeferred
async def test_the_room_of_each_of_many_requests_that_come_at_once_comes_back(
    nas: Nas, small: Small
) -> None:
    def talk() -> None:
        with Client(nas.port) as client:
            client.send(get("/health") * 3000)
            for _ in range(3000):
                assert client.answer()[0] == 200

    await nas.in_thread(talk)
    await nas.at_rest()
    await nas.in_thread(wait_until, lambda: not nas.site.channels, "the end of the connection")
    assert small.is_empty()


@pytest_twisted.ensureDeferred
async def test_clients_that_leave_do_not_make_room_for_more_work_than_there_is_room_for(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "f").write_bytes(b"old")
    go_on, opened = threading.Event(), nas.storage.open

    def open_late(name: bytes) -> Any:
        go_on.wait(20)
        return opened(name)

    monkeypatch.setattr(nas.storage, "open_cached", lambda name: None)
    monkeypatch.setattr(nas.storage, "open", open_late)

    def talk() -> None:
        for _ in range(50):
            with Client(nas.port) as client:
                client.send(get("/file/f"))
                let_daemon_read()
                reset = struct.pack("ii", 1, 0)
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        wait_until(lambda: not nas.site.channels, "all to be missed")
        running = nas.site.handlers.running
        go_on.set()
        assert running <= REQUESTS + CONNECTIONS
        wait_until(lambda: not nas.site.handlers.running, "the work to be done")
        with Client(nas.port) as client:
            client.send(get("/file/f"))
            assert client.answer()[0] == 200, "the room has come back"

    await nas.in_thread(talk)
    await nas.at_rest()


def fill(nas: Nas, small: Small) -> list[Client]:
    """Open connections with uploads that do not end, and leave no place beside them."""
    clients = []
    for _ in range(REQUESTS):
        clients.append(Client(nas.port))
        clients[-1].send(UPLOAD)
        let_daemon_read()
    small.fill()
    return clients


@pytest_twisted.ensureDeferred
async def test_a_connection_that_has_been_idle_for_the_longest_makes_room(nas: Nas) -> None:
    def talk() -> None:
        clients: list[Client] = []
        while len(nas.site.channels) == len(clients):
            clients.append(Client(nas.port))
            let_daemon_read()
        assert clients[0].rest() == b""
        for client in clients[-1:-3:-1]:
            client.send(get("/file/"))
            assert client.answer()[0] == 200, "its room is made, too"
        for client in clients:
            client.socket.close()

    await nas.in_thread(talk)
    await nas.at_rest()


@pytest_twisted.ensureDeferred
async def test_a_half_head_that_is_older_than_others_makes_room(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old")

    def talk() -> None:
        clients: list[Client] = []
        for _ in range(4 * CONNECTIONS):
            clients.append(Client(nas.port))
            clients[-1].send(HALF)
            let_daemon_read()
            with Client(nas.port) as other:
                other.send(get("/file/f"))
                assert other.answer()[::2] == (200, b"old")
        assert clients[0].answer()[0] == 408
        assert clients[0].rest() == b""
        clients[-1].send(b"\r\n")
        assert clients[-1].answer()[0] == 200, "it came last"
        for client in clients:
            client.socket.close()

    await nas.in_thread(talk)
    await nas.at_rest()


@pytest_twisted.ensureDeferred
async def test_when_every_place_is_taken_operators_are_answered_once_and_others_refused(
    nas: Nas, small: Small
) -> None:
    def talk() -> None:
        clients = fill(nas, small)
        for path, expected in (("/health", 200), ("/ready", 200), ("/file/f", 503), ("/", 503)):
            with Client(nas.port) as other:
                other.send(get(path))
                status, headers, _ = other.answer()
                assert (status, headers["connection"]) == (expected, "close")
                assert other.rest() == b""
        for client in clients:
            client.socket.close()

    await nas.in_thread(talk)
    await nas.at_rest()


@pytest_twisted.ensureDeferred
async def test_connections_without_a_place_are_bounded_and_the_newest_is_answered(
    nas: Nas, small: Small
) -> None:
    def talk() -> None:
        clients = fill(nas, small)
        full = len(nas.site.channels)
        for _ in range(3 * EXTRA):
            clients.append(Client(nas.port))
            clients[-1].send(HALF)
            let_daemon_read()
        wait_until(lambda: len(nas.site.channels) <= full + EXTRA, "the oldest to be ended")
        with Client(nas.port) as other:
            other.send(get("/health"))
            assert other.answer()[0] == 200
        for client in clients:
            client.socket.close()

    await nas.in_thread(talk)
    await nas.at_rest()


@pytest_twisted.ensureDeferred
async def test_connections_that_gave_up_their_place_and_do_not_end_are_bounded(nas: Nas) -> None:
    (nas.root / "f").write_bytes(bytes(READ - 4096))
    listening: Any = nas._listening
    listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    most = 0

    def talk() -> None:
        nonlocal most
        clients = []
        for _ in range(2 * EXTRA):
            clients.append(Client(nas.port, buffer=4096))
            clients[-1].send(get("/file/f"))
            let_daemon_read()
            most = max(most, len(nas.site.channels))
        assert most > EXTRA, "none has taken its answer"
        assert clients[-1].answer()[0] == 200
        for client in clients:
            client.socket.close()

    await nas.in_thread(talk)
    assert most <= EXTRA + 2 * CONNECTIONS
    await nas.at_rest()


def test_a_daemon_whose_descriptors_are_all_taken_says_that_it_is_alive(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with (
        twistd(tmp_path / "root", under=["prlimit", "--nofile=64:160"]) as daemon,
        contextlib.ExitStack() as peers,
    ):
        for _ in range(110):
            peers.enter_context(connect(daemon.port)).sendall(HALF)
        descriptors = Path(f"/proc/{daemon.process.pid}/fd")
        wait_until(lambda: len(list(descriptors.iterdir())) > 90, "the soft limit to be passed")
        for _ in range(5):
            answer = talk(daemon.port, [get("/health")[:-2] + b"Connection: close\r\n\r\n"])
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(list(descriptors.iterdir())) < 160
