"""Slow peers and slow disks cost bounded memory and no threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from httpnas.storage.upload import Upload
from httpnas.transfer.sender import FileRange
from httpnas.transfer.sink import HIGH_WATER
from tests.harness import PATIENCE, Client, Nas, let_daemon_read, wait_until

HOST = b"Host: nas\r\n"
HEALTH = b"GET /file HTTP/1.1\r\n" + HOST + b"\r\n"
MIB = 1 << 20


def post(name: bytes, length: int) -> bytes:
    return b"POST /file/%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (name, HOST, length)


def get(name: bytes) -> bytes:
    return b"GET /file/%b HTTP/1.1\r\n%b\r\n" % (name, HOST)


def is_served(nas: Nas, times: int = 20) -> None:
    """Ask for various things, which have to be answered while others are stuck."""
    (nas.root / "small").write_bytes(b"x")
    with Client(nas.port) as client:
        for _ in range(times):
            client.send(HEALTH)
            assert client.answer()[0] == 200
            client.send(get(b"small"))
            assert client.answer()[2] == b"x"
            client.send(post(b"small", 1).replace(b"POST", b"PUT") + b"y")
            assert client.answer()[0] == 200
            (nas.root / "small").write_bytes(b"x")


@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_disk_that_takes_nothing_stops_the_client_after_a_few_mebibytes(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    go_on = threading.Event()
    write = Upload.write

    def stuck(upload: Upload, chunks: Sequence[bytes]) -> None:
        assert go_on.wait(PATIENCE)
        write(upload, chunks)

    monkeypatch.setattr(Upload, "write", stuck)
    body = bytes(range(256)) * (48 * MIB // 256)
    sent = post(b"f", len(body)) + body
    if chunked:
        piece = b"1000\r\n" + bytes(range(256)) * 16 + b"\r\n"
        sent = post(b"f", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        sent += piece * (len(body) // 4096) + b"0\r\n\r\n"

    def talk() -> None:
        with Client(nas.port, buffer=MIB) as client:
            sender = threading.Thread(target=client.socket.sendall, args=[sent])
            sender.start()
            wait_until(lambda: nas.site.handlers.running)
            (channel,) = nas.site.channels
            request_body = channel.requests[0].body
            wait_until(lambda: request_body.received >= HIGH_WATER, "the first mebibytes")
            is_served(nas)
            let_daemon_read()
            assert request_body.received < HIGH_WATER + MIB
            assert sender.is_alive()
            go_on.set()
            assert client.answer()[0] == 200
            sender.join()

    try:
        await nas.in_thread(talk)
    finally:
        go_on.set()
    assert (nas.root / "f").read_bytes() == body


@pytest_twisted.ensureDeferred
async def test_of_a_download_that_is_not_read_only_a_few_mebibytes_are_read(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, read = 48 * MIB, 0
    taken = FileRange._taken

    def counted(source: FileRange, block: bytes) -> bytes:
        nonlocal read
        read += len(block)
        return taken(source, block)

    monkeypatch.setattr(FileRange, "_taken", counted)
    with (nas.root / "large").open("wb") as file:
        file.truncate(size)

    def talk() -> None:
        with Client(nas.port, buffer=8192) as client:
            client.send(get(b"large"))
            wait_until(
                lambda: any(c.deadlines.is_blocked for c in nas.site.channels), "a full pipe"
            )
            is_served(nas)
            let_daemon_read()
            # Its own buffers and those of its kernel, which are some mebibytes.
            assert read < 12 * MIB
            assert client.answer()[2] == bytes(size)

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_many_slow_peers_hold_no_thread(nas: Nas) -> None:
    with (nas.root / "large").open("wb") as file:
        file.truncate(64 * MIB)
    crowd = 64

    def talk() -> None:
        with contextlib.ExitStack() as stack:

            def client() -> Client:
                return stack.enter_context(Client(nas.port, buffer=8192))

            uploads = [stack.enter_context(Client(nas.port)) for _ in range(crowd)]
            downloads = [client() for _ in range(crowd)]
            for number, upload in enumerate(uploads):
                upload.send(post(b"up%d" % number, 2 * MIB) + bytes(MIB + MIB // 2))
            for download in downloads:
                download.send(get(b"large"))
            wait_until(lambda: nas.site.handlers.running == 2 * crowd, "all to have begun")
            wait_until(lambda: len(nas.leftovers()) == crowd, "all uploads to have begun")
            wait_until(lambda: not nas.disk._pool.working, "all threads to be free")
            is_served(nas)
            assert nas.site.handlers.running == 2 * crowd
            for upload in uploads:
                upload.send(bytes(MIB // 2))
            for upload in uploads:
                assert upload.answer()[0] == 200

    await deferToThread(talk)
    await nas.at_rest()
    assert nas.leftovers() == []
    for number in range(crowd):
        assert (nas.root / f"up{number}").stat().st_size == 2 * MIB


@pytest_twisted.ensureDeferred
async def test_a_body_that_fails_to_be_written_is_answered_before_it_has_come(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Upload, "write", full)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(post(b"f", 1 << 40) + bytes(2 * MIB))
            assert client.answer()[0] == 507
            assert client.rest() == b""
            # Chunked, with little left to come, the connection can go on.
        with Client(nas.port) as client:
            head = post(b"f", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            client.send(head + b"100000\r\n" + bytes(MIB) + b"\r\n")
            assert client.answer()[0] == 507
            client.send(b"0\r\n\r\n" + HEALTH)
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert nas.leftovers() == []
    assert not (nas.root / "f").exists()
