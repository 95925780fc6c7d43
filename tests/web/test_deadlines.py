"""What takes too long is ended, and nobody else has to wait for it.

Time passes only when a test lets it: the daemon's clock for its connections is the test's.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.internet.threads import blockingCallFromThread

from httpnas.web.server.deadlines import PROGRESS, Limits
from tests.harness import PATIENCE, Client, Nas, let_daemon_read, wait_until

HOST = b"Host: nas\r\n"
HEALTH = b"GET /file HTTP/1.1\r\n" + HOST + b"\r\n"
DOWNLOAD = b"GET /file/large HTTP/1.1\r\n" + HOST + b"\r\n"
NEVER = 1e6
MIB = 1 << 20


class Daemon(Nas):
    """A daemon whose limits are the given ones, and else far away; all in seconds."""

    def __init__(self, root: Path, **limits: float) -> None:
        far = {"stall": NEVER, "headers": NEVER, "idle": NEVER, "linger": NEVER}
        self.clock = Clock()
        super().__init__(root, Limits(**{**far, **limits}), clock=self.clock)

    def pass_time(self, seconds: int, *trickles: tuple[Client, bytes]) -> None:
        """Let time pass, second by second; from a thread.

        :param trickles: clients, and what each sends every second for as long as it is wanted.
        """
        let_daemon_read()
        for _ in range(seconds):
            for client, sent in trickles:
                with contextlib.suppress(OSError):
                    client.socket.sendall(sent)
            let_daemon_read()
            blockingCallFromThread(IReactorFromThreads(reactor), self.clock.advance, 1)
        let_daemon_read()

    def pass_time_until(self, condition: Callable[[], Any], *trickles: tuple[Client, bytes]) -> int:
        """Let time pass until *condition* holds; return after how many seconds it did."""
        seconds = 0

        def holds() -> object:
            nonlocal seconds
            if condition():
                return True
            self.pass_time(1, *trickles)
            seconds += 1
            return False

        wait_until(holds, "something to be ended")
        return seconds

    def wait_for_handlers(self, number: int) -> None:
        """Wait until so many requests are handled that wait for bytes of their bodies."""

        def waiting() -> list[object]:
            running = blockingCallFromThread(
                IReactorFromThreads(reactor), lambda: list(self.site.running())
            )
            return [r for r in running if not r.body.is_unclaimed and not r.body.paused]

        wait_until(lambda: len(waiting()) == number, "all bodies to be asked for")


@pytest_twisted.async_yield_fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(**limits: float) -> Daemon:
        made.append(Daemon(tmp_path / "root", **limits))
        return made[-1]

    yield make
    for nas in made:
        await nas.stop()


def post(length: int | None) -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"POST /file/f HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n"


def has_news(client: Client) -> bool:
    """Tell whether there is something to be read, or the end."""
    return bool(select.select([client.socket], [], [], 0)[0])


def furnish(nas: Nas, size: int) -> None:
    with (nas.root / "large").open("wb") as file:
        file.truncate(size)


@contextlib.contextmanager
def clients(nas: Nas, *sent: bytes) -> Any:
    """Connect a client for each of *sent*, which it sends."""
    with contextlib.ExitStack() as stack:
        connected = [stack.enter_context(Client(nas.port)) for _ in sent]
        for client, first in zip(connected, sent, strict=True):
            client.send(first)
        yield connected


def assert_timed_out(
    nas: Daemon, limit: int, sent: Sequence[tuple[bytes, bytes]], handlers: int = 0
) -> None:
    """Assert that clients which send something, and then trickle, get a 408 after *limit*."""
    with clients(nas, *(first for first, _ in sent)) as connected:
        nas.wait_for_handlers(handlers)
        trickles = [(c, more) for c, (_, more) in zip(connected, sent, strict=True) if more]
        nas.pass_time(limit, *trickles)
        assert not any(has_news(client) for client in connected)
        nas.pass_time(2, *trickles)
        for client in connected:
            status, headers, _ = client.answer()
            assert (status, headers["connection"]) == (408, "close")
            assert client.rest() == b""


@pytest_twisted.ensureDeferred
async def test_headers_have_to_come_in_time_even_when_they_move(
    make: Callable[..., Daemon],
) -> None:
    start = b"GET /file HTTP/1.1\r\n"
    sent = [
        (b"G", b""),
        (b"G", b"E"),
        (start + b"X: ", b""),
        (start + b"X: ", b"y"),
        (start, b"X: y\r\n"),
    ]
    nas = make(headers=10)
    await nas.in_thread(assert_timed_out, nas, 10, sent)


@pytest_twisted.ensureDeferred
async def test_the_headers_of_a_second_request_have_to_come_in_time_as_well(
    make: Callable[..., Daemon],
) -> None:
    nas = make(headers=10)

    def talk() -> None:
        with clients(nas, HEALTH, HEALTH + b"\r\n") as connected:
            for client in connected:
                assert client.answer()[0] == 200
            for client in connected:
                client.send(b"G")
            nas.pass_time(10)
            assert not any(has_news(client) for client in connected)
            nas.pass_time(2)
            for client in connected:
                assert client.answer()[0] == 408
                assert client.rest() == b""

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_connection_without_a_request_is_closed_in_time(
    make: Callable[..., Daemon],
) -> None:
    nas = make(idle=10)
    early = b"PUT /file/none HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"
    sent = [[], [HEALTH], [post(1) + b"x", HEALTH], [early]]

    def talk() -> None:
        with clients(nas, *(b"" for _ in sent)) as connected:
            for client, requests in zip(connected, sent, strict=True):
                for request in requests:
                    client.send(request)
                    assert client.answer()[0] in (200, 404)
            nas.pass_time(10)
            assert not any(has_news(client) for client in connected)
            nas.pass_time(2)
            for client in connected:
                assert client.rest() == b""

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_connection_in_use_is_not_idle(make: Callable[..., Daemon]) -> None:
    nas = make(idle=10)

    def talk() -> None:
        with Client(nas.port) as client:
            for _ in range(4):
                client.send(HEALTH)
                assert client.answer()[0] == 200
                nas.pass_time(8)

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_body_that_hardly_moves_is_refused_and_leaves_nothing(
    make: Callable[..., Daemon],
) -> None:
    sent = [
        (post(MIB), b""),
        (post(MIB), b"x"),
        (post(None), b""),
        (post(None), b"1\r\nx\r\n"),
        (post(None) + b"5;", b"x"),
        (post(MIB).replace(b"POST", b"PUT"), b"x"),
        (post(4).replace(b"POST /file/f", b"PUT /file/f/mv"), b""),
    ]
    nas = make(stall=10)
    (nas.root / "f").write_bytes(b"old")
    await nas.in_thread(assert_timed_out, nas, 10, sent, len(sent))
    await nas.at_rest()
    assert nas.leftovers() == []
    assert (nas.root / "f").read_bytes() == b"old"


@pytest_twisted.ensureDeferred
async def test_a_body_that_no_longer_moves_is_refused(make: Callable[..., Daemon]) -> None:
    nas = make(stall=10)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(MIB) + bytes(100_000))
            wait_until(lambda: any(r.body.received == 100_000 for r in nas.site.running()))
            nas.wait_for_handlers(1)
            assert 10 < nas.pass_time_until(lambda: has_news(client)) < 40
            assert client.answer()[0] == 408

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_body_that_moves_is_not_ended_however_long_it_takes(
    make: Callable[..., Daemon],
) -> None:
    nas = make(stall=10, headers=1, idle=1)
    pieces = 16

    def has_come(size: int) -> bool:
        return any(r.body.received == size for r in nas.site.running())

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(pieces * PROGRESS))
            for piece in range(1, pieces + 1):
                client.socket.sendall(bytes(PROGRESS))
                if piece < pieces:
                    wait_until(partial(has_come, piece * PROGRESS))
                    nas.pass_time(8)
            assert client.answer()[0] == 200

    await nas.in_thread(talk)


@pytest.mark.parametrize("expects", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_client_is_not_blamed_for_a_slow_disk(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, expects: bool
) -> None:
    nas = make(stall=1, headers=1, idle=1)
    begin = nas.storage.begin_upload
    has_begun, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> object:
        has_begun.set()
        assert go_on.wait(PATIENCE)
        return begin(*args)

    monkeypatch.setattr(nas.storage, "begin_upload", slow)

    def talk() -> None:
        body = bytes(MIB)
        with Client(nas.port) as client:
            if expects:
                client.send(post(len(body)).replace(HOST, HOST + b"Expect: 100-continue\r\n"))
            else:
                client.send(post(len(body)) + body)
            assert has_begun.wait(PATIENCE)
            nas.pass_time(20)
            assert not has_news(client)
            go_on.set()
            if expects:
                assert client.answer()[0] == 100
                client.send(body)
            assert client.answer()[0] == 200

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_cut_off_while_others_are_served(
    make: Callable[..., Daemon],
) -> None:
    nas = make(stall=10)
    furnish(nas, 200 * MIB)

    def talk() -> None:
        starving = [Client(nas.port, buffer=8192) for _ in range(2)]
        with starving[0], starving[1], Client(nas.port) as served:
            for client in starving:
                client.send(DOWNLOAD)
            wait_until(lambda: nas.site.handlers.running == 2)

            def is_cut() -> bool:
                served.send(HEALTH)
                assert served.answer()[0] == 200
                return not nas.site.handlers.running

            assert nas.pass_time_until(is_cut) > 10
            for client in starving:
                with contextlib.suppress(ConnectionResetError):
                    assert len(client.rest()) < 20 * MIB

    await nas.in_thread(talk)
    assert not any(link.endswith("/large") for link in _open_files())


def _open_files() -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(fd.readlink()))
    return links


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_slowly_but_steadily_gets_everything(
    make: Callable[..., Daemon],
) -> None:
    nas = make(stall=10, idle=1, headers=1)
    size = 24 * MIB
    furnish(nas, size)

    def talk() -> None:
        with Client(nas.port, buffer=256 << 10) as client:
            client.send(DOWNLOAD.replace(HOST, HOST + b"Connection: close\r\n"))
            got = waited = 0
            while chunk := client.socket.recv(MIB):
                got += len(chunk)
                if got // MIB > waited:
                    waited = got // MIB
                    nas.pass_time(3)
            assert got > size

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_refused_client_has_a_bounded_time_to_go(make: Callable[..., Daemon]) -> None:
    nas = make(linger=10)
    early = b"PUT /file/none HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n"
    sent = [
        (b"nonsense\r\n", b"x"),
        (early % (1 << 40), b"x"),  # more than is drained: it lingers at once
        (early % 1000, b"x"),  # first it is drained, then it lingers
        (early % (1 << 40), bytes(1 << 16)),
    ]

    def talk() -> None:
        """Let clients read their answers, and never end their own side."""
        with clients(nas, *(first for first, _ in sent)) as connected:
            for client in connected:
                assert client.answer()[0] in (400, 404)
            trickles = [(c, more) for c, (_, more) in zip(connected, sent, strict=True)]
            nas.pass_time(10, *trickles)
            assert len(nas.site.channels) == len(sent)
            assert 10 < nas.pass_time_until(lambda: not nas.site.channels, *trickles) < 40
            for client in connected:
                with pytest.raises(OSError):
                    while True:
                        client.socket.sendall(b"x")

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_even_read_its_refusal_is_cut_off(
    make: Callable[..., Daemon],
) -> None:
    nas = make(linger=10, idle=10)

    def talk() -> None:
        with clients(nas, b"nonsense\r\n"):
            wait_until(lambda: nas.site.channels)
            assert 10 < nas.pass_time_until(lambda: not nas.site.channels) < 40

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_whose_answer_is_not_read_is_cut_off(
    make: Callable[..., Daemon],
) -> None:
    nas = make(linger=10, idle=10)
    (nas.root / "f").write_bytes(bytes(60_000))

    def talk() -> None:
        with Client(nas.port, buffer=4096) as client:
            wait_until(lambda: nas.site.channels)
            (channel,) = nas.site.channels
            handle = channel.transport.getHandle()
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.send(b"GET /file/f HTTP/1.1\r\n" + HOST + b"\r\n")
            wait_until(
                lambda: channel.transport.dataBuffer and channel.deadlines.is_idle,
                "an idle channel",
            )
            assert 10 < nas.pass_time_until(lambda: not nas.site.channels) < 40

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_a_connection_that_was_full_once_is_not_cut_off_later(
    make: Callable[..., Daemon],
) -> None:
    nas = make(stall=10)
    furnish(nas, 24 * MIB)

    def talk() -> None:
        with Client(nas.port, buffer=256 << 10) as client:
            client.send(DOWNLOAD)
            wait_until(
                lambda: any(c.deadlines.is_blocked for c in nas.site.channels), "a full pipe"
            )
            assert client.answer()[0] == 200
            for _ in range(4):
                client.send(HEALTH)
                assert client.answer()[0] == 200
                nas.pass_time(8)

    await nas.in_thread(talk)
