"""Requests that come before the answers to those before them: bounded in bytes, and fair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import LoopingCall
from twisted.internet.threads import blockingCallFromThread

from httpnas.web.server.channel import AHEAD, READ
from httpnas.web.server.request import StreamingRequest
from tests.harness import PATIENCE, Client, Nas, let_daemon_read, wait_until

HEALTH = b"GET /health HTTP/1.1\r\nHost: nas\r\n\r\n"
LARGE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: nas\r\n\r\n"


@pytest.fixture
def ended(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """Counts the requests that have ended, by the turn of the reactor."""
    counted: Counter[int] = Counter()
    turn = 0

    def next_turn() -> None:
        nonlocal turn
        turn += 1

    real = nas.site.log

    def log(request: StreamingRequest) -> None:
        counted[turn] += 1
        real(request)

    monkeypatch.setattr(nas.site, "log", log)
    turns = LoopingCall(next_turn)
    turns.start(0)
    yield counted
    turns.stop()


@pytest_twisted.ensureDeferred
async def test_answers_that_nobody_reads_are_bounded_in_bytes(
    nas: Nas, ended: Counter[int]
) -> None:
    def pipeline() -> None:
        with Client(nas.port, buffer=8192) as client:
            client.send(LARGE * 100)
            (channel,) = wait_until(lambda: nas.site.channels, "the connection")
            wait_until(lambda: channel.deadlines.is_blocked, "the socket to be full")
            before = -1
            while before != ended.total():
                before = ended.total()
                let_daemon_read()
            answers = [client.answer() for _ in range(100)]
            size = int(answers[0][1]["content-length"])
            assert before < 10, "the rest waits for the client"
            assert most[0] < 2 * READ
            assert {(status, len(body)) for status, _, body in answers} == {(200, size)}

    most = _watch_unsent(nas)
    await nas.in_thread(pipeline)
    assert ended.total() == 100


def _watch_unsent(nas: Nas) -> list[int]:
    """Keep the most bytes that have waited for any socket when a request had ended."""
    most = [0]
    real = nas.site.log

    def log(request: StreamingRequest) -> None:
        most[0] = max(most[0], *(channel.unsent() for channel in nas.site.channels))
        real(request)

    nas.site.log = log  # type: ignore[method-assign]
    return most


@pytest_twisted.ensureDeferred
async def test_each_pipelined_request_is_taken_in_a_turn_of_its_own(
    nas: Nas, ended: Counter[int]
) -> None:
    def pipeline() -> None:
        with Client(nas.port) as client:
            client.send(HEALTH * 200)
            for _ in range(200):
                assert client.answer()[0] == 200

    await nas.in_thread(pipeline)
    assert ended.total() == 200
    assert max(ended.values()) == 1


@pytest_twisted.ensureDeferred
async def test_requests_behind_an_answer_that_nobody_reads_are_not_read(nas: Nas) -> None:
    with (nas.root / "large").open("wb") as file:
        file.truncate(64 << 20)
    large = b"GET /file/large HTTP/1.1\r\nHost: nas\r\n\r\n"
    ahead: list[int] = []

    def pipeline() -> None:
        with Client(nas.port, buffer=8192) as client:
            client.send(large)
            (channel,) = wait_until(lambda: nas.site.channels, "the connection")
            wait_until(lambda: channel.deadlines.is_blocked, "the socket to be full")
            client.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                while True:
                    client.socket.send(HEALTH * 1000)
                    ahead.append(channel._ahead())

    await nas.in_thread(pipeline)
    assert max(ahead) <= AHEAD + READ


@pytest_twisted.ensureDeferred
async def test_requests_that_come_faster_than_they_are_answered_are_not_all_read(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead: list[int] = []
    real = nas.site.log

    def log(request: StreamingRequest) -> None:
        ahead.extend(channel._ahead() for channel in nas.site.channels)
        real(request)

    monkeypatch.setattr(nas.site, "log", log)
    long = HEALTH[:-2] + b"X: %b\r\n\r\n" % (b"x" * 1000)

    def pipeline() -> None:
        with Client(nas.port) as client:
            client.send(long * 500)
            for _ in range(500):
                assert client.answer()[0] == 200

    await nas.in_thread(pipeline)
    assert max(ahead) <= AHEAD + READ


@pytest_twisted.ensureDeferred
async def test_the_last_answer_comes_whole_though_more_requests_were_sent_than_are_read(
    nas: Nas,
) -> None:
    content = b"x" * (6 << 20)
    (nas.root / "large").write_bytes(content)

    def pipeline() -> None:
        with Client(nas.port, buffer=8192) as client:
            client.send(b"GET /file/large HTTP/1.1\r\nHost: nas\r\n\r\n")
            (channel,) = wait_until(lambda: nas.site.channels, "the connection")
            wait_until(lambda: channel.deadlines.is_blocked, "the socket to be full")
            client.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                while True:
                    client.socket.send(HEALTH * 1000)
            nas.site.draining = True
            client.socket.settimeout(PATIENCE)
            status, _, body = client.answer()
            assert (status, body == content) == (200, True)
            assert client.rest() == b""

    await nas.in_thread(pipeline)


@pytest_twisted.ensureDeferred
async def test_a_client_that_takes_its_last_answer_slowly_is_not_idle(nas: Nas) -> None:
    nas.site.limits.idle = 0

    def pipeline() -> None:
        with Client(nas.port, buffer=8192) as client:
            client.send(LARGE * 5)
            (channel,) = wait_until(lambda: nas.site.channels, "the connection")
            wait_until(lambda: channel.deadlines.is_blocked, "the socket to be full")
            let_daemon_read()
            for _ in range(3):
                now = nas.site.reactor.seconds()
                blockingCallFromThread(
                    IReactorFromThreads(reactor), channel.deadlines.check, now + 1
                )
            nas.site.limits.idle = 60
            for _ in range(5):
                assert client.answer()[0] == 200

    await nas.in_thread(pipeline)
