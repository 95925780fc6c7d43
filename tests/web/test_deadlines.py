"""What takes too long is ended, and nobody else has to wait for it.

Most tests let the watch over connections look more often than once a second, to save time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from httpnas.web.server.deadlines import PROGRESS, Limits
from tests.harness import PATIENCE, Client, Nas, wait_until

HOST = b"Host: nas\r\n"
HEALTH = b"GET /file HTTP/1.1\r\n" + HOST + b"\r\n"
NEVER = 1e6
#: Longest that a limit of 0.3 s and the watch may take, with time for a slow machine.
SOON = 4.0


@pytest_twisted.async_yield_fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Nas]]:
    """Makes a daemon whose limits are the given ones, and else far away.

    It looks at its connections every *watch* seconds; None: as often as it does by itself.
    """
    made: list[Nas] = []

    def make(watch: float | None = 0.05, **limits: float) -> Nas:
        far = {"stall": NEVER, "headers": NEVER, "idle": NEVER, "linger": NEVER}
        nas = Nas(tmp_path / "root", limits=Limits(**{**far, **limits}))
        if watch is not None:
            nas.site._watch.stop()
            nas.site._watch.start(watch)
        made.append(nas)
        return nas

    yield make
    for nas in made:
        await nas.stop()


async def at_once(*clients: Callable[[], Any]) -> list[Any]:
    return list(await gatherResults([deferToThread(client) for client in clients]))


def post(length: int | None) -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"POST /file/f HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n"


def trickle(client: Client, byte: bytes, until: threading.Event, every: float = 0.05) -> None:
    """Send *byte* again and again until the event is set or the daemon does not want any more."""
    with contextlib.suppress(OSError):
        while not until.wait(every):
            client.socket.sendall(byte)


def timed_out(nas: Nas, sent: bytes, trickled: bytes = b"") -> Callable[[], None]:
    """Return a client that sends *sent*, then trickles, and has to get a 408 and the end soon."""

    def talk() -> None:
        began = time.monotonic()
        with Client(nas.port) as client:
            client.send(sent)
            done = threading.Event()
            thread = threading.Thread(target=trickle, args=[client, trickled, done])
            if trickled:
                thread.start()
            try:
                status, headers, _ = client.answer()
                assert (status, headers["connection"]) == (408, "close")
                assert client.rest() == b""
            finally:
                done.set()
                if trickled:
                    thread.join()
        assert 0.2 < time.monotonic() - began < SOON

    return talk


@pytest_twisted.ensureDeferred
async def test_headers_have_to_come_in_time_even_when_they_move(make: Callable[..., Nas]) -> None:
    nas = make(headers=0.3)
    start = b"GET /file HTTP/1.1\r\n"
    await at_once(
        timed_out(nas, b"G"),
        timed_out(nas, b"G", b"E"),
        timed_out(nas, start + b"X: "),
        timed_out(nas, start + b"X: ", b"y"),
        timed_out(nas, start, b"X: y\r\n"),
    )


@pytest_twisted.ensureDeferred
async def test_the_headers_of_a_second_request_have_to_come_in_time_as_well(
    make: Callable[..., Nas],
) -> None:
    nas = make(headers=0.3)

    def second(between: bytes) -> Callable[[], None]:
        def talk() -> None:
            with Client(nas.port) as client:
                client.send(HEALTH + between)
                assert client.answer()[0] == 200
                client.send(b"G")
                assert client.answer()[0] == 408
                assert client.rest() == b""

        return talk

    await at_once(second(b""), second(b"\r\n"))


@pytest_twisted.ensureDeferred
async def test_a_connection_without_a_request_is_closed_in_time(make: Callable[..., Nas]) -> None:
    nas = make(idle=0.3, watch=None)

    def talk(*requests: bytes) -> Callable[[], None]:
        def talk() -> None:
            began = time.monotonic()
            with Client(nas.port) as client:
                for request in requests:
                    client.send(request)
                    assert client.answer()[0] in (200, 404)
                assert client.rest() == b""
            assert 0.2 < time.monotonic() - began < SOON

        return talk

    early = b"PUT /file/none HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"
    await at_once(talk(), talk(HEALTH), talk(post(1) + b"x", HEALTH), talk(early))


@pytest_twisted.ensureDeferred
async def test_a_connection_in_use_is_not_idle(make: Callable[..., Nas]) -> None:
    nas = make(idle=0.6)

    def talk() -> None:
        with Client(nas.port) as client:
            end = time.monotonic() + 1.2
            while time.monotonic() < end:
                client.send(HEALTH)
                assert client.answer()[0] == 200
                time.sleep(0.1)

    await at_once(talk)


@pytest_twisted.ensureDeferred
async def test_a_body_that_hardly_moves_is_refused_and_leaves_nothing(
    make: Callable[..., Nas],
) -> None:
    nas = make(stall=0.3, linger=0.3)
    (nas.root / "f").write_bytes(b"old")
    await at_once(
        timed_out(nas, post(1 << 20)),
        timed_out(nas, post(1 << 20), b"x"),
        timed_out(nas, post(None)),
        timed_out(nas, post(None), b"1\r\nx\r\n"),
        timed_out(nas, post(None) + b"5;", b"x"),
        timed_out(nas, post(1 << 20) + bytes(100_000)),
        timed_out(nas, post(1 << 20).replace(b"POST", b"PUT"), b"x"),
        timed_out(nas, post(4).replace(b"POST /file/f", b"PUT /file/f/mv")),
    )
    await nas.at_rest()
    assert nas.leftovers() == []
    assert (nas.root / "f").read_bytes() == b"old"


@pytest_twisted.ensureDeferred
async def test_a_body_that_moves_is_not_ended_however_long_it_takes(
    make: Callable[..., Nas],
) -> None:
    nas = make(stall=0.6, headers=0.1, idle=0.1)
    pieces = 16

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(pieces * PROGRESS))
            for _ in range(pieces):
                client.socket.sendall(bytes(PROGRESS))
                time.sleep(0.1)
            assert client.answer()[0] == 200

    await at_once(talk)


@pytest.mark.parametrize("expects", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_client_is_not_blamed_for_a_slow_disk(
    make: Callable[..., Nas], monkeypatch: pytest.MonkeyPatch, expects: bool
) -> None:
    nas = make(stall=0.1, headers=0.1, idle=0.1)
    begin = nas.storage.begin_upload
    go_on = threading.Event()

    def slow(*args: Any) -> object:
        assert go_on.wait(PATIENCE)
        return begin(*args)

    monkeypatch.setattr(nas.storage, "begin_upload", slow)

    def talk() -> None:
        timer = threading.Timer(0.5, go_on.set)
        timer.start()
        with Client(nas.port) as client:
            body = bytes(1 << 20)
            if expects:
                head = post(len(body)).replace(HOST, HOST + b"Expect: 100-continue\r\n")
                client.send(head)
                assert client.answer()[0] == 100
                client.send(body)
            else:
                client.send(post(len(body)) + body)
            assert client.answer()[0] == 200

    await at_once(talk)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_cut_off_while_others_are_served(
    make: Callable[..., Nas],
) -> None:
    nas = make(stall=0.3)
    with (nas.root / "large").open("wb") as file:
        file.truncate(200 << 20)

    def starve() -> None:
        began = time.monotonic()
        with Client(nas.port, buffer=8192) as client:
            client.send(b"GET /file/large HTTP/1.1\r\n" + HOST + b"\r\n")
            wait_until(lambda: nas.site.handlers.running)
            wait_until(lambda: not nas.site.handlers.running, "the download to be cut")
            assert 0.2 < time.monotonic() - began < SOON
            with contextlib.suppress(ConnectionResetError):
                assert len(client.rest()) < 20 << 20

    def served() -> None:
        with Client(nas.port) as client:
            for _ in range(20):
                began = time.monotonic()
                client.send(HEALTH)
                assert client.answer()[0] == 200
                assert time.monotonic() - began < 0.5
                time.sleep(0.05)

    await at_once(starve, starve, served)
    assert not any(link.endswith("/large") for link in _open_files())


def _open_files() -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(fd.readlink()))
    return links


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_slowly_but_steadily_gets_everything(
    make: Callable[..., Nas],
) -> None:
    nas = make(stall=0.6, idle=0.1, headers=0.1)
    size = 24 << 20
    with (nas.root / "large").open("wb") as file:
        file.truncate(size)

    def talk() -> None:
        with Client(nas.port, buffer=256 << 10) as client:
            client.send(b"GET /file/large HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            got, began = 0, time.monotonic()
            while chunk := client.socket.recv(1 << 18):
                got += len(chunk)
                time.sleep(max(0, began + 1.5 * got / size - time.monotonic()))
            assert got > size

    await at_once(talk)


@pytest_twisted.ensureDeferred
async def test_a_refused_client_has_a_bounded_time_to_go(make: Callable[..., Nas]) -> None:
    nas = make(linger=0.3)
    refused = b"nonsense\r\n"
    early = b"PUT /file/none HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n"

    def ends(sent: bytes, trickled: bytes) -> Callable[[], None]:
        """Return a client that reads its answer but never ends its own side."""

        def talk() -> None:
            began = time.monotonic()
            with Client(nas.port) as client:
                client.send(sent)
                assert client.answer()[0] in (400, 404)
                client.rest()
                with pytest.raises(OSError):
                    while time.monotonic() - began < PATIENCE:
                        client.socket.sendall(trickled)
                        time.sleep(0.02)
            assert 0.2 < time.monotonic() - began < 2 * SOON

        return talk

    await at_once(
        ends(refused, b"x"),
        ends(early % (1 << 40), b"x"),  # more than is drained: it lingers at once
        ends(early % 1000, b"x"),  # first it is drained, then it lingers
        ends(early % (1 << 40), bytes(1 << 16)),
    )
    await nas.in_thread(wait_until, lambda: not nas.site.channels, "all connections to be gone")


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_even_read_its_refusal_is_cut_off(
    make: Callable[..., Nas],
) -> None:
    nas = make(linger=0.3, idle=0.3)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(b"nonsense\r\n")
            wait_until(lambda: nas.site.channels)
            wait_until(lambda: not nas.site.channels, "the connection to be cut")

    await at_once(talk)


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_whose_answer_is_not_read_is_cut_off(
    make: Callable[..., Nas],
) -> None:
    nas = make(linger=0.3, idle=0.3)
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
            wait_until(lambda: not nas.site.channels, "the connection to be cut")

    await at_once(talk)


@pytest_twisted.ensureDeferred
async def test_a_connection_that_was_full_once_is_not_cut_off_later(
    make: Callable[..., Nas],
) -> None:
    nas = make(stall=0.4)
    with (nas.root / "large").open("wb") as file:
        file.truncate(24 << 20)

    def talk() -> None:
        with Client(nas.port, buffer=256 << 10) as client:
            client.send(b"GET /file/large HTTP/1.1\r\n" + HOST + b"\r\n")
            wait_until(
                lambda: any(c.deadlines.is_blocked for c in nas.site.channels), "a full pipe"
            )
            assert client.answer()[0] == 200
            end = time.monotonic() + 0.8
            while time.monotonic() < end:
                client.send(HEALTH)
                assert client.answer()[0] == 200
                time.sleep(0.05)

    await at_once(talk)
