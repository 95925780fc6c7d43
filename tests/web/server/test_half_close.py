"""Clients that close their side after the request, and those that look the same but have gone."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import blockingCallFromThread

from tests.harness import Client, Nas, let_daemon_read, wait_until

HOST = b"Host: nas\r\n"
HEALTH = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
UPLOAD = b"POST /file/f HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nnew"
LARGE = b"x" * (8 << 20)


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (HEALTH, [200]),
        (HEALTH.replace(b"1.1", b"1.0"), [200]),
        (HEALTH + b"\r\n", [200]),
        (b"GET /file/small HTTP/1.1\r\n" + HOST + b"\r\n", [200]),
        (b"GET /file/ HTTP/1.1\r\n" + HOST + b"\r\n", [200]),
        (b"HEAD /file/small HTTP/1.1\r\n" + HOST + b"\r\n", [200]),
        (UPLOAD, [200]),
        (
            UPLOAD.replace(b"Content-Length: 3", b"Expect: 100-continue\r\nContent-Length: 3"),
            [200],
        ),
        (
            UPLOAD.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked").replace(
                b"\r\nnew", b"\r\n3\r\nnew\r\n0\r\n\r\n"
            ),
            [200],
        ),
        (HEALTH + UPLOAD + HEALTH, [200, 200, 200]),
        (HEALTH + HEALTH[:-1], [200]),
        (HEALTH + UPLOAD[:-1], [200]),
        (b"nonsense\r\n\r\n", [400]),
        (HEALTH + b"nonsense\r\n\r\n", [200, 400]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_whoever_closes_their_side_gets_all_answers(
    nas: Nas, sent: bytes, statuses: list[int]
) -> None:
    (nas.root / "small").write_bytes(b"small")
    answers = await nas.talk(sent, close=True)
    found = [int(part[2:5]) for part in answers.split(b"HTTP/1.")[1:]]
    assert found == statuses
    if UPLOAD[:50] in sent and len(statuses) == sent.count(b"HTTP/1.1"):
        assert (nas.root / "f").read_bytes() == b"new"
    await nas.at_rest()
    assert not nas.site.channels


@pytest_twisted.ensureDeferred
async def test_a_download_comes_whole_after_the_client_has_closed_its_side(nas: Nas) -> None:
    (nas.root / "large").write_bytes(LARGE)
    request = b"GET /file/large HTTP/1.1\r\n" + HOST + b"\r\n"

    def slowly() -> bytes:
        with Client(nas.port, buffer=8192) as client:
            client.send(request * 2)
            client.socket.shutdown(socket.SHUT_WR)
            (channel,) = wait_until(lambda: nas.site.channels, "the connection")
            wait_until(lambda: channel.deadlines.is_blocked, "the socket to be full")
            return client.rest()

    answers = await nas.in_thread(slowly)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(LARGE)
    assert answers.count(b"x") >= 2 * len(LARGE)


@pytest_twisted.ensureDeferred
async def test_a_body_that_is_cut_by_closing_is_not_stored(nas: Nas) -> None:
    assert await nas.talk(UPLOAD[:-1], close=True) == b""
    await nas.at_rest()
    assert not (nas.root / "f").exists()
    assert not nas.site.channels


class Waiting:
    """A request whose handler waits until it is told to go on."""

    def __init__(self, nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
        self._nas = nas
        self._go_on = threading.Event()
        opened = nas.storage.open

        def open_late(name: bytes) -> Any:
            self._go_on.wait(20)
            return opened(name)

        monkeypatch.setattr(nas.storage, "open_cached", lambda name: None)
        monkeypatch.setattr(nas.storage, "open", open_late)

    def tick(self) -> object:
        """Let the daemon look after its connections, as it does once a second."""
        return blockingCallFromThread(IReactorFromThreads(reactor), self._nas.site._check)

    def go_on(self) -> None:
        self._go_on.set()


@pytest_twisted.ensureDeferred
async def test_whoever_waits_longer_is_sent_an_interim_answer_once(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "f").write_bytes(b"content")
    waiting = Waiting(nas, monkeypatch)

    def wait() -> None:
        with Client(nas.port) as client:
            client.send(b"GET /file/f HTTP/1.1\r\n" + HOST + b"\r\n")
            client.socket.shutdown(socket.SHUT_WR)
            wait_until(lambda: any(c._ended for c in nas.site.channels), "the end to be noticed")
            for _ in range(3):
                waiting.tick()
            waiting.go_on()
            assert [client.answer()[0] for _ in range(2)] == [100, 200]
            assert client.rest() == b""

    await nas.in_thread(wait)


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_gone_is_told_from_one_that_waits(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "f").write_bytes(b"content")
    waiting = Waiting(nas, monkeypatch)

    def leave() -> None:
        with Client(nas.port) as client:
            client.send(b"GET /file/f HTTP/1.1\r\n" + HOST + b"\r\n")
            wait_until(lambda: list(nas.site.running()), "the request")
            (request,) = nas.site.running()
        wait_until(lambda: any(c._ended for c in nas.site.channels), "the end to be noticed")
        let_daemon_read()
        assert not request.gone
        waiting.tick()
        wait_until(lambda: waiting.tick() or request.gone, "the client to be missed")
        assert not nas.site.channels
        waiting.go_on()

    await nas.in_thread(leave)
    await nas.at_rest()


@pytest_twisted.ensureDeferred
async def test_nothing_follows_a_refusal_that_waits_for_the_client(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(nas, monkeypatch)
    waiting.go_on()

    def talk() -> bytes:
        with Client(nas.port, buffer=8192) as client:
            client.send(HEALTH)
            (channel,) = wait_until(lambda: nas.site.channels, "the connection")
            while not channel.unsent():
                client.send(HEALTH * 100)
                let_daemon_read()
                wait_until(lambda: channel.deadlines.is_idle and not channel._buffer)
            client.send(
                UPLOAD.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"\r\n\r\n"
            )
            client.socket.shutdown(socket.SHUT_WR)
            wait_until(lambda: channel._ended, "the end to be noticed")
            waiting.tick()
            return client.rest()

    answers = await nas.in_thread(talk)
    _, refusal, behind = answers.partition(b"HTTP/1.1 400 ")
    assert refusal
    assert b"HTTP/1.1 " not in behind
