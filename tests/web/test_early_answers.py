"""Answers that are given before the body has come, and bodies that never come whole."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from httpnas.web.server.request import DRAINED
from tests.harness import PATIENCE, Client, Nas, let_daemon_read, wait_until

HOST = b"Host: nas\r\n"
HEALTH = b"GET /file HTTP/1.1\r\n" + HOST + b"\r\n"
EXPECT = b"Expect: 100-continue\r\n"
OLD = b"old content\n"
LIMIT = 1 << 20


@pytest_twisted.async_yield_fixture
async def small(tmp_path: Path) -> AsyncIterator[Nas]:
    """A daemon that takes no bodies of more than a MiB."""
    nas = Nas(tmp_path / "root", max_upload=LIMIT)
    yield nas
    await nas.stop()


def head(method: bytes, path: bytes, length: int | None, *fields: bytes) -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    lines = [b"%b /file/%b HTTP/1.1" % (method, path), b"Host: nas", framing, *fields]
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def assert_is_problem(answer: tuple[int, dict[str, str], bytes], status: int) -> None:
    assert answer[0] == status, answer
    assert answer[1]["content-type"] == "application/problem+json"
    assert json.loads(answer[2])["status"] == status


def stored(nas: Nas) -> dict[str, bytes]:
    """Return what lies below the root, and bring the folder of :func:`furnish` to mind."""
    return {
        str(path.relative_to(nas.root)): path.read_bytes()
        for path in nas.root.rglob("*")
        if path.is_file() and ".httpnas" not in path.parts
    }


def furnish(nas: Nas) -> dict[str, bytes]:
    (nas.root / "folder").mkdir()
    (nas.root / "f").write_bytes(OLD)
    return {"f": OLD}


#: What is known from the headers, with the length that the body is said to have.
EARLY: dict[str, tuple[int, bytes, bytes, int, tuple[bytes, ...]]] = {
    "append to nothing": (404, b"PUT", b"none", 10, ()),
    "append to a folder": (409, b"PUT", b"folder", 10, ()),
    "append at another offset": (409, b"PUT", b"f", 10, (b"Upload-Offset: 5",)),
    "append at a bad offset": (400, b"PUT", b"f", 10, (b"Upload-Offset: x",)),
    "a folder": (409, b"POST", b"folder", 10, ()),
    "below a file": (409, b"POST", b"f/g", 10, ()),
    "create only": (412, b"POST", b"f", 10, (b"If-None-Match: *",)),
    "another version": (412, b"POST", b"f", 10, (b'If-Match: "x"',)),
    "append to another version": (412, b"PUT", b"f", 10, (b'If-Match: "x"',)),
    "too large": (413, b"POST", b"f", LIMIT + 1, ()),
    "too large an append": (413, b"PUT", b"f", LIMIT + 1, ()),
    "packed": (415, b"POST", b"f", 10, (b"Content-Encoding: gzip",)),
    "packed append": (415, b"PUT", b"f", 10, (b"Content-Encoding: br",)),
    "the daemon's own": (403, b"POST", b".httpnas/x", 10, ()),
    "append to the daemon's own": (403, b"PUT", b".httpnas/x", 10, ()),
    "upwards": (400, b"POST", b"../f", 10, ()),
    "bad escape": (400, b"POST", b"%zz", 10, ()),
    "long component": (400, b"POST", b"x" * 256, 10, ()),
    "long name": (414, b"POST", b"x/" * 2500, 10, ()),
    "bad digest": (400, b"POST", b"f", 10, (b"Content-MD5: x",)),
    "unknown method": (405, b"PATCH", b"f", 10, ()),
    "uploading a verb": (405, b"POST", b"f/wc", 10, ()),
    "move of nothing": (404, b"PUT", b"none/mv", 10, ()),
    "move with too much": (400, b"PUT", b"f/mv", 100_000, ()),
    "from another site": (403, b"POST", b"f", 10, (b"Sec-Fetch-Site: cross-site",)),
}


# Before the body is asked for


@pytest.mark.parametrize("what", EARLY)
@pytest_twisted.ensureDeferred
async def test_what_the_headers_tell_is_refused_without_asking_for_the_body(
    small: Nas, what: str
) -> None:
    status, method, path, length, fields = EARLY[what]
    before = furnish(small)

    def talk() -> None:
        with Client(small.port) as client:
            client.send(head(method, path, length, *fields, EXPECT.strip()))
            assert_is_problem(client.answer(), status)  # a 100 would have come before it
            assert client.rest() == b""

    await small.in_thread(talk)
    assert stored(small) == before
    assert small.leftovers() == []


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest_twisted.ensureDeferred
async def test_more_than_there_is_space_for_is_refused_without_asking_for_it(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, method: bytes
) -> None:
    furnish(nas)
    monkeypatch.setattr(nas.storage.volume, "free_bytes", lambda: 999)

    def talk(length: int) -> list[int]:
        with Client(nas.port) as client:
            client.send(head(method, b"f", length, EXPECT.strip()))
            status = client.answer()[0]
            if status != 100:
                assert client.rest() == b""
                return [status]
            client.send(b"x" * length)
            return [status, client.answer()[0]]

    assert await nas.in_thread(talk, 1000) == [507]
    assert stored(nas) == {"f": OLD}
    assert await nas.in_thread(talk, 999) == [100, 200]


@pytest.mark.parametrize("length", [5, None])
@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest_twisted.ensureDeferred
async def test_a_body_that_is_wanted_is_asked_for_once(
    nas: Nas, method: bytes, length: int | None
) -> None:
    furnish(nas)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(method, b"f", length, EXPECT.strip()))
            assert client.answer() == (100, {}, b"")
            client.send(b"hello" if length else b"5\r\nhello\r\n0\r\n\r\n")
            assert client.answer()[0] == 200
            client.send(HEALTH)
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert stored(nas) == {"f": b"hello" if method == b"POST" else OLD + b"hello"}


@pytest_twisted.ensureDeferred
async def test_a_body_is_not_asked_for_before_the_storage_is_ready(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = threading.Event()
    begin = nas.storage.begin_upload

    def slow(*args: Any) -> object:
        assert ready.wait(PATIENCE)
        return begin(*args)

    monkeypatch.setattr(nas.storage, "begin_upload", slow)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(b"POST", b"f", 1, EXPECT.strip()))
            wait_until(lambda: nas.site.handlers.running)
            let_daemon_read()
            client.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
            client.socket.settimeout(PATIENCE)
            ready.set()
            assert client.answer()[0] == 100
            client.send(b"x")
            assert client.answer()[0] == 200

    await nas.in_thread(talk)


@pytest.mark.parametrize("length", [4 << 20, None])
@pytest_twisted.ensureDeferred
async def test_what_comes_before_the_storage_is_ready_is_held_up_to_a_bound_and_not_lost(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    ready = threading.Event()
    begin = nas.storage.begin_upload
    body = b"0123456789abcdef" * (4 << 16)
    encoded = body if length else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    def slow(*args: Any) -> object:
        assert ready.wait(PATIENCE)
        return begin(*args)

    monkeypatch.setattr(nas.storage, "begin_upload", slow)

    def talk() -> None:
        with Client(nas.port) as client:
            sender = threading.Thread(
                target=client.socket.sendall, args=[head(b"POST", b"f", length) + encoded]
            )
            sender.start()
            wait_until(lambda: nas.site.handlers.running)
            (channel,) = nas.site.channels
            request_body = channel.requests[0].body
            wait_until(lambda: request_body.paused, "the daemon to stop reading")
            let_daemon_read()
            assert request_body.received < 512 << 10
            ready.set()
            assert client.answer()[0] == 200
            sender.join()

    await nas.in_thread(talk)
    assert stored(nas) == {"f": body}


# Before the body has come


@pytest.mark.parametrize("what", [what for what, case in EARLY.items() if case[3] == 10])
@pytest_twisted.ensureDeferred
async def test_after_an_early_answer_the_connection_goes_on_behind_the_body(
    small: Nas, what: str
) -> None:
    status, method, path, _, fields = EARLY[what]
    before = furnish(small)
    body = b"DELETE /file/f HTTP/1.1\r\nHost: nas\r\n\r\n"
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    def talk() -> None:
        with Client(small.port) as client:
            for length, encoded in ((len(body), body), (None, chunks)):
                request = head(method, path, length, *fields)
                # At once, while nothing of the body has come.
                client.send(request)
                assert_is_problem(client.answer(), status)
                client.send(encoded[:5], encoded[5:] + HEALTH)
                assert client.answer()[0] == 200
                # When everything comes together.
                client.send(request + encoded + HEALTH)
                assert_is_problem(client.answer(), status)
                assert client.answer()[0] == 200

    await small.in_thread(talk)
    assert stored(small) == before


@pytest_twisted.ensureDeferred
async def test_a_body_within_the_budget_is_dropped_and_the_connection_goes_on(nas: Nas) -> None:
    def talk() -> None:
        with Client(nas.port) as client:
            for length in (100_000, 256 << 10):
                client.send(head(b"PUT", b"none", length))
                assert client.answer()[0] == 404
                client.send(b"\r\n" * (length // 2) + HEALTH)
                assert client.answer()[0] == 200

    await nas.in_thread(talk)


@pytest_twisted.ensureDeferred
async def test_an_answer_that_the_connection_can_not_outlive_says_so(nas: Nas) -> None:
    def talk() -> None:
        for field in ((), (EXPECT.strip(),)):
            with Client(nas.port) as client:
                client.send(head(b"PUT", b"none", (256 << 10) + 1 if not field else 5, *field))
                status, headers, _ = client.answer()
                assert (status, headers.get("connection")) == (404, "close")
                client.socket.sendall(b"DELETE /file/f HTTP/1.1\r\nHost: nas\r\n\r\n")
                assert client.rest() == b""

    furnish(nas)
    await nas.in_thread(talk)
    assert stored(nas) == {"f": OLD}


def _encode(body: bytes, length: int | None) -> bytes:
    return body if length is not None else b"%x\r\n%b\r\n" % (len(body), body)


@pytest.mark.parametrize("size", [8 << 20, 32 << 20])
@pytest.mark.parametrize("length", [1 << 40, None])
@pytest.mark.parametrize(("path", "status"), [(b"folder", 409), (b"%zz", 400)])
@pytest_twisted.ensureDeferred
async def test_an_early_answer_can_be_read_by_a_client_that_sends_everything_first(
    nas: Nas, path: bytes, status: int, length: int | None, size: int
) -> None:
    furnish(nas)
    nas.site.limits.linger = 1e6  # the end of the body is seen, and not waited for in vain

    def talk() -> None:
        with Client(nas.port) as client:
            # Part of the body comes in one segment with the headers.
            client.send(head(b"POST", path, length) + _encode(bytes(1 << 20), length))
            for _ in range(1, size >> 20):
                client.socket.sendall(_encode(bytes(1 << 20), length))
            client.socket.shutdown(socket.SHUT_WR)
            assert_is_problem(client.answer(), status)
            assert client.rest() == b""

    await nas.in_thread(talk)
    await nas.at_rest()
    assert stored(nas) == {"f": OLD}


@pytest.mark.parametrize("length", [1 << 40, None])
@pytest_twisted.ensureDeferred
async def test_an_early_answer_can_be_read_while_a_huge_body_is_still_sent(
    nas: Nas, length: int | None
) -> None:
    furnish(nas)
    answered = threading.Event()

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(b"POST", b"folder", length))

            def send() -> None:
                while not answered.is_set():
                    client.socket.sendall(_encode(bytes(1 << 16), length))

            sender = threading.Thread(target=send)
            sender.start()
            try:
                assert_is_problem(client.answer(), 409)
                assert client.rest() == b""
            finally:
                answered.set()
                sender.join()

    await nas.in_thread(talk)
    await nas.at_rest()


# Bodies that are refused while they come


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest_twisted.ensureDeferred
async def test_a_chunked_body_over_the_limit_is_refused_and_nothing_is_left(
    small: Nas, method: bytes
) -> None:
    furnish(small)

    def talk(size: int) -> int:
        with Client(small.port) as client:
            client.send(head(method, b"f", None, EXPECT.strip()))
            assert client.answer()[0] == 100
            for _ in range(size // 1024):
                client.socket.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
            client.socket.sendall(
                b"%x\r\n" % (size % 1024 or 1) + bytes(size % 1024 or 1) + b"\r\n"
            )
            answer = client.answer()
            assert_is_problem(answer, 413)
            client.send(b"0\r\n\r\n" + HEALTH)
            return client.answer()[0]

    assert await small.in_thread(talk, LIMIT + 1) == 200
    assert await small.in_thread(talk, LIMIT + 100_000) == 200
    assert stored(small) == {"f": OLD}
    assert small.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_bodies_of_just_the_limit_are_taken(small: Nas) -> None:
    body = bytes(LIMIT)

    def talk() -> None:
        with Client(small.port) as client:
            client.send(head(b"POST", b"length", LIMIT) + body)
            assert client.answer()[0] == 200
            client.send(head(b"POST", b"chunked", None) + b"%x\r\n%b\r\n0\r\n\r\n" % (LIMIT, body))
            assert client.answer()[0] == 200

    await small.in_thread(talk)
    assert stored(small) == {"length": body, "chunked": body}


@pytest_twisted.ensureDeferred
async def test_a_body_already_over_the_limit_when_it_is_wanted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas = Nas(tmp_path / "root", max_upload=1000)
    ready = threading.Event()
    begin = nas.storage.begin_upload

    def slow(*args: Any) -> object:
        assert ready.wait(PATIENCE)
        return begin(*args)

    monkeypatch.setattr(nas.storage, "begin_upload", slow)

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(b"POST", b"f", None) + b"3e9\r\n" + bytes(1001) + b"\r\n")
            let_daemon_read()
            ready.set()
            assert_is_problem(client.answer(), 413)
            client.send(b"0\r\n\r\n" + HEALTH)
            assert client.answer()[0] == 200

    try:
        await nas.in_thread(talk)
        assert stored(nas) == {}
        assert nas.leftovers() == []
    finally:
        await nas.stop()


# Bodies that end early


BODY = b"0123456789" * 5
ENCODED = {
    "length": (len(BODY), BODY),
    "chunked": (None, b"19\r\n%b\r\n19\r\n%b\r\n0\r\nA: b\r\n\r\n" % (BODY[:25], BODY[25:])),
}


@pytest.mark.parametrize("ending", ["end", "reset"])
@pytest.mark.parametrize("framing", ENCODED)
@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_vanishes_anywhere_in_a_body_changes_nothing(
    nas: Nas, method: bytes, framing: str, ending: str
) -> None:
    furnish(nas)
    length, encoded = ENCODED[framing]
    sent = head(method, b"f", length) + encoded

    def vanish(at: int) -> None:
        with Client(nas.port) as client:
            client.send(sent[:at])
            if at % 2:
                let_daemon_read()
            if ending == "reset":
                linger = struct.pack("ii", 1, 0)
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    for at in range(0, len(sent), 3):
        await nas.in_thread(vanish, at)
    await nas.in_thread(vanish, len(sent) - 1)
    await nas.at_rest()
    assert stored(nas) == {"f": OLD}
    assert nas.leftovers() == []


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest.mark.parametrize("framing", ENCODED)
@pytest_twisted.ensureDeferred
async def test_a_body_that_is_ended_early_is_not_stored_and_not_called_ok(
    nas: Nas, method: bytes, framing: str
) -> None:
    furnish(nas)
    length, encoded = ENCODED[framing]
    answer = await nas.talk(head(method, b"f", length) + encoded[:-1], close=True)
    assert b"200" not in answer.partition(b"\r\n")[0]
    await nas.at_rest()
    assert stored(nas) == {"f": OLD}
    assert nas.leftovers() == []


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_vanishes_while_megabytes_are_written_leaves_nothing(
    nas: Nas, method: bytes
) -> None:
    furnish(nas)

    def vanish(size: int) -> None:
        with Client(nas.port) as client:
            client.send(head(method, b"f", 100 << 20))
            client.socket.sendall(bytes(size))
            if size > 4 << 20:
                wait_until(nas.leftovers, "a temporary")

    for size in (70_000, 1 << 20, 3 << 20, 8 << 20):
        await nas.in_thread(vanish, size)
        await nas.at_rest()
        assert nas.leftovers() == []
        assert stored(nas) == {"f": OLD}


@pytest_twisted.ensureDeferred
async def test_the_old_content_is_served_until_the_new_one_is_whole(nas: Nas) -> None:
    furnish(nas)
    new = bytes(3 << 20)

    async def read() -> bytes:
        return (await nas.fetch("GET", "/file/f"))[1]

    client = Client(nas.port)
    with client:
        await nas.in_thread(client.send, head(b"POST", b"f", len(new)) + new[:-1])
        await nas.in_thread(wait_until, nas.leftovers)
        assert await read() == OLD
        await nas.in_thread(client.send, new[-1:])
        assert (await nas.in_thread(client.answer))[0] == 200
        assert await read() == new


@pytest_twisted.ensureDeferred
async def test_a_client_that_vanishes_after_its_body_was_whole_has_stored_it(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    sync = nas.storage.sync

    def slow(fd: int) -> None:
        reached.set()
        assert go_on.wait(PATIENCE)
        sync(fd)

    monkeypatch.setattr(nas.storage, "sync", slow)

    def vanish() -> None:
        with Client(nas.port) as client:
            client.send(head(b"POST", b"f", 5) + b"whole")
            assert reached.wait(PATIENCE)
            reset = struct.pack("ii", 1, 0)  # to close for writing alone is not to vanish
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)

    await nas.in_thread(vanish)
    await nas.in_thread(wait_until, lambda: not nas.site.channels, "the connection to be gone")
    go_on.set()
    await nas.at_rest()
    assert stored(nas) == {"f": b"whole"}
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_a_refused_chunked_body_is_drained_up_to_a_bound_and_then_lingers(nas: Nas) -> None:
    nas.site.limits.linger = 1e6

    def talk() -> None:
        with Client(nas.port) as client:
            client.send(head(b"POST", b"f", None, b"Content-Encoding: gzip"))
            assert_is_problem(client.answer(), 415)
            client.send(b"%x\r\n" % (1 << 40) + bytes(DRAINED + 1))
            assert client.rest() == b""

    await nas.in_thread(talk)
