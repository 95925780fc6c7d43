"""What reads much: listings, digests and line counts have threads of their own, and are shared."""

from __future__ import annotations

import hashlib
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import blockingCallFromThread

from httpnas.transfer import scan
from httpnas.transfer.disk import SURVEYS, THREADS
from httpnas.web.request import Request
from tests.harness import Client, Nas, let_daemon_read, wait_until

LISTING = b"GET /file/ HTTP/1.1\r\nHost: x\r\n\r\n"


def running(nas: Nas) -> list[Request]:
    """Return the requests that are running; from a thread."""
    return blockingCallFromThread(IReactorFromThreads(reactor), lambda: list(nas.site.running()))


class Gate:
    """Holds up all who come to a call, until it is opened."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._open = threading.Event()
        self.came = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.came += 1
        assert self._open.wait(20)
        return self._call(*args, **kwargs)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def scandir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(os.scandir)
    monkeypatch.setattr(os, "scandir", gate)
    yield gate
    gate.open()


@pytest_twisted.ensureDeferred
async def test_listings_of_clients_that_have_left_are_never_begun(nas: Nas, scandir: Gate) -> None:
    def hang_up_all() -> None:
        clients = [Client(nas.port) for _ in range(SURVEYS + 30)]
        for client in clients:
            client.send(LISTING)
        wait_until(lambda: nas.disk.queued == 30, "all but some to wait for a thread")
        wait_until(lambda: scandir.came == SURVEYS, "those to have one")
        for client in clients:
            client.socket.close()
        wait_until(lambda: not running(nas), "all to be gone")

    await nas.in_thread(hang_up_all)
    scandir.open()
    await nas.at_rest()
    assert scandir.came == SURVEYS


@pytest_twisted.ensureDeferred
async def test_changes_and_downloads_need_no_thread_of_a_listing(nas: Nas, scandir: Gate) -> None:
    (nas.root / "f").write_bytes(b"content")
    listings = [Deferred.fromCoroutine(nas.fetch("GET", "/file/")) for _ in range(THREADS + 4)]
    await nas.in_thread(wait_until, lambda: scandir.came == SURVEYS)
    waiting = THREADS + 4 - SURVEYS
    await nas.in_thread(wait_until, lambda: nas.disk.queued == waiting, "the rest to wait")
    for method, path in [("POST", "/file/g"), ("PUT", "/file/g"), ("DELETE", "/file/g")]:
        assert (await nas.fetch(method, path, data=b"x"))[0] == 200
    assert (await nas.fetch("GET", "/file/f"))[1] == b"content"
    scandir.open()
    assert {listing[1] for listing in await gatherResults(listings)} == {b"f\n"}


@pytest.mark.parametrize("order", ["", "?sort=size&limit=10"])
@pytest_twisted.ensureDeferred
async def test_a_listing_ends_soon_after_its_client_has_left(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    real, taken, left = os.scandir, [0], threading.Event()

    class Endless:
        """A folder that has more entries than anybody would read."""

        def __init__(self, where: int) -> None:
            with real(where) as entries:
                self._entry = next(entry for entry in entries if entry.name == "f")

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return self._entries()

        def __exit__(self, *_: object) -> None:
            pass

        def _entries(self) -> Iterator[os.DirEntry[str]]:
            for number in range(200_000):
                taken[0] = number
                if number == 1000:
                    assert left.wait(20)
                yield self._entry

    (nas.root / "f").touch()
    monkeypatch.setattr(os, "scandir", Endless)

    def hang_up() -> None:
        with Client(nas.port) as client:
            client.send(LISTING.replace(b"/file/", b"/file/" + order.encode()))
            wait_until(lambda: taken[0] == 1000, "the folder to be read")
        wait_until(lambda: not running(nas), "it to be gone")
        left.set()

    await nas.in_thread(hang_up)
    await nas.at_rest()
    assert taken[0] < 3000


# Digests and counts


class Reads:
    """Counts the bytes that are read by a scan, and holds it up at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        self._pread = os.pread
        self._going = threading.Event()
        monkeypatch.setattr(os, "pread", self.read)
        monkeypatch.setattr(scan, "_STRETCH", 1 << 20)

    def read(self, fd: int, count: int, offset: int) -> bytes:
        assert self._going.wait(20)
        self.bytes += count
        return self._pread(fd, count, offset)

    def go_on(self) -> None:
        self._going.set()


@pytest.fixture
def reads(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    reads = Reads(monkeypatch)
    (nas.root / "f").write_bytes(b"0123456\n" * (512 << 10))
    yield reads
    reads.go_on()


SIZE = 4 << 20
DIGEST = b"sha-256=:" + b64encode(hashlib.sha256(b"0123456\n" * (512 << 10)).digest()) + b":"


@pytest_twisted.ensureDeferred
async def test_a_digest_that_many_ask_for_is_computed_once(nas: Nas, reads: Reads) -> None:
    headers = {"Want-Repr-Digest": "sha-256=1"}
    asking = [
        Deferred.fromCoroutine(nas.fetch("HEAD", "/file/f", headers=headers)) for _ in range(20)
    ]
    counting = [Deferred.fromCoroutine(nas.fetch("GET", "/file/f/wc")) for _ in range(20)]
    await nas.in_thread(wait_until, lambda: len(running(nas)) == 40)
    await nas.in_thread(let_daemon_read)
    reads.go_on()
    for _, _, found in await gatherResults(asking):
        assert found.getRawHeaders(b"Repr-Digest") == [DIGEST]
    assert {body for _, body, _ in await gatherResults(counting)} == {b"%d" % (512 << 10)}
    assert reads.bytes == 2 * SIZE


@pytest_twisted.ensureDeferred
async def test_who_joins_gets_it_although_the_first_one_leaves(nas: Nas, reads: Reads) -> None:
    first = await nas.in_thread(Client, nas.port)
    await nas.in_thread(first.send, b"GET /file/f/wc HTTP/1.1\r\nHost: x\r\n\r\n")
    await nas.in_thread(wait_until, lambda: nas.disk.running == 1)
    second = Deferred.fromCoroutine(nas.fetch("GET", "/file/f/wc"))
    await nas.in_thread(wait_until, lambda: len(running(nas)) == 2)
    first.socket.close()
    await nas.in_thread(wait_until, lambda: len(running(nas)) == 1)
    reads.go_on()
    assert (await second)[1] == b"%d" % (512 << 10)
    assert reads.bytes == SIZE


@pytest_twisted.ensureDeferred
async def test_what_nobody_waits_for_any_more_is_not_computed_to_its_end(
    nas: Nas, reads: Reads
) -> None:
    clients = [await nas.in_thread(Client, nas.port) for _ in range(3)]
    for client in clients:
        await nas.in_thread(client.send, b"GET /file/f/wc HTTP/1.1\r\nHost: x\r\n\r\n")
    await nas.in_thread(wait_until, lambda: len(running(nas)) == 3)
    for client in clients:
        client.socket.close()
    await nas.in_thread(wait_until, lambda: not running(nas))
    reads.go_on()
    await nas.at_rest()
    assert reads.bytes <= 1 << 20
    assert (await nas.fetch("GET", "/file/f/wc"))[1] == b"%d" % (512 << 10)
