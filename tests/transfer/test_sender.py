from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from httpnas.storage import pagecache
from httpnas.storage.errors import FileCutShort
from httpnas.transfer import sender
from httpnas.transfer.sender import (
    BLOCK,
    SLAB,
    TURN,
    Chained,
    ConsumerGone,
    FileRange,
    Generated,
    Sender,
    Source,
    Text,
)


class HandDisk:
    """A disk whose calls run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[[], Any]]] = []
        self.running = False

    def run(self, call: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((done, call))
        return done

    def complete(self) -> None:
        """Run the oldest call."""
        done, call = self.waiting.pop(0)
        self.running = True
        try:
            result = call()
        except Exception:
            self.running = False
            done.errback(Failure())
        else:
            self.running = False
            done.callback(result)


class Consumer:
    """Takes notes; after *room* bytes it pauses its producer, as a transport does."""

    def __init__(self, room: int = 1 << 62) -> None:
        self.written = b""
        self.room = room
        self.producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming, "a pull producer would have to have its block at once"
        self.producer = producer

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        assert self.producer is not None, "written after the producer was unregistered"
        assert data
        self.written += data
        self.room -= len(data)
        if self.room <= 0:
            self.producer.pauseProducing()


class Script:
    """A source that plays *blocks*: None stands for "not in memory", errors are raised.

    ``read`` may only be called through *disk*.
    """

    def __init__(self, disk: HandDisk, *blocks: bytes | Exception | None) -> None:
        self.disk = disk
        self.blocks = list(blocks)

    def read_now(self) -> bytes | None:
        assert not self.disk.running
        if self.blocks and self.blocks[0] is None:
            self.blocks.pop(0)
            return None
        return self._next()

    def read(self) -> bytes:
        assert self.disk.running, "read on the reactor thread"
        return self._next()

    def stretch(self) -> None:
        return None

    def _next(self) -> bytes:
        block = self.blocks.pop(0) if self.blocks else b""
        if isinstance(block, Exception):
            raise block
        assert block is not None
        return block


class Bench:
    def __init__(self, *blocks: bytes | Exception | None, room: int = 1 << 62) -> None:
        self.disk = HandDisk()
        self.consumer = Consumer(room)
        self.sender = Sender(self.disk)  # type: ignore[arg-type]
        self.source = Script(self.disk, *blocks)
        self.outcome: list[Any] = []
        done = self.sender.beginFileTransfer(self.source, self.consumer)  # type: ignore[arg-type]
        done.addBoth(self.outcome.append)

    def failure(self) -> BaseException:
        (failure,) = self.outcome
        assert isinstance(failure, Failure) and failure.value is not None
        return failure.value


def test_what_is_in_memory_is_sent_at_once_without_a_thread() -> None:
    bench = Bench(b"a", b"b", b"c")
    assert bench.consumer.written == b"abc"
    assert bench.outcome == [None]
    assert bench.disk.waiting == []
    assert bench.consumer.producer is None


def test_what_is_not_in_memory_is_read_in_a_thread() -> None:
    bench = Bench(b"a", None, b"b", b"c", None, b"d")
    assert (bench.consumer.written, bench.outcome) == (b"a", [])
    bench.disk.complete()
    assert (bench.consumer.written, bench.outcome) == (b"abc", [])
    bench.disk.complete()
    assert (bench.consumer.written, bench.outcome) == (b"abcd", [None])


def test_an_end_that_is_found_in_a_thread_is_the_end() -> None:
    bench = Bench(None)
    bench.disk.complete()
    assert bench.outcome == [None]
    assert bench.consumer.producer is None


def test_an_empty_source_is_sent() -> None:
    bench = Bench()
    assert bench.outcome == [None]
    assert bench.consumer.written == b""


def test_one_block_is_read_at_a_time() -> None:
    bench = Bench(None, b"a", None, b"b")
    bench.sender.pauseProducing()
    bench.sender.resumeProducing()
    bench.sender.resumeProducing()
    assert len(bench.disk.waiting) == 1
    bench.disk.complete()
    bench.disk.complete()
    assert bench.consumer.written == b"ab"


def test_a_paused_sender_reads_nothing_until_it_is_resumed() -> None:
    bench = Bench(b"a", b"b", None, b"c", room=1)
    assert bench.consumer.written == b"a"
    assert bench.source.blocks == [b"b", None, b"c"]
    bench.sender.resumeProducing()
    assert bench.consumer.written == b"ab"
    assert bench.disk.waiting == []
    bench.sender.resumeProducing()
    assert len(bench.disk.waiting) == 1


def test_paused_during_a_read_it_gives_that_block_and_reads_no_other() -> None:
    bench = Bench(None, b"a", b"b")
    bench.sender.pauseProducing()
    bench.disk.complete()
    assert bench.consumer.written == b"a"
    assert bench.source.blocks == [b"b"]
    bench.sender.resumeProducing()
    assert bench.consumer.written == b"ab"
    assert bench.outcome == [None]


def test_stopped_it_reads_and_gives_nothing_more() -> None:
    bench = Bench(b"a", b"b", room=1)
    bench.sender.stopProducing()
    assert isinstance(bench.failure(), ConsumerGone)
    bench.sender.resumeProducing()
    assert bench.consumer.written == b"a"
    assert bench.source.blocks == [b"b"]


def test_stopped_during_a_read_it_reports_only_when_the_read_is_over() -> None:
    bench = Bench(None, b"a", b"b")
    bench.sender.stopProducing()
    assert bench.outcome == [], "the file would be closed under the read"
    bench.disk.complete()
    assert isinstance(bench.failure(), ConsumerGone)
    assert bench.consumer.written == b""
    assert bench.source.blocks == [b"b"]


def test_stopped_during_a_read_that_fails_it_reports_once() -> None:
    bench = Bench(None, OSError("disk"))
    bench.consumer.unregisterProducer()
    bench.sender.stopProducing()
    bench.disk.complete()
    assert isinstance(bench.failure(), ConsumerGone)


def test_stopped_twice_it_reports_once() -> None:
    bench = Bench(b"a", room=1)
    bench.sender.stopProducing()
    bench.sender.stopProducing()
    assert isinstance(bench.failure(), ConsumerGone)


@pytest.mark.parametrize("in_thread", [False, True])
def test_an_error_of_the_source_ends_the_transfer(in_thread: bool) -> None:
    error = OSError("disk")
    bench = Bench(b"a", *([None] if in_thread else []), error, b"b")
    if in_thread:
        bench.disk.complete()
    assert bench.failure() is error
    assert bench.consumer.producer is None
    bench.sender.resumeProducing()
    bench.sender.stopProducing()
    assert bench.consumer.written == b"a"


# Sources


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, bytes]]:
    path: Path = tmp_path_factory.mktemp("sender") / "file"
    content = os.urandom(3 * SLAB + 17)
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    yield fd, content
    os.close(fd)


SIZE = 3 * SLAB + 17


@given(
    offset=st.integers(0, SIZE) | st.sampled_from([0, BLOCK - 1, BLOCK, SLAB, SIZE - 1]),
    length=st.integers(0, SIZE) | st.sampled_from([0, 1, BLOCK, BLOCK + 1, SLAB + 1]),
    waits=st.lists(st.booleans(), min_size=1),
)
def test_any_range_of_a_file_is_its_bytes(
    file: tuple[int, bytes], offset: int, length: int, waits: list[bool]
) -> None:
    fd, content = file
    length = min(length, SIZE - offset)
    source = FileRange(fd, offset, length)
    got, turn = b"", 0
    while True:
        block = source.read() if waits[turn % len(waits)] else source.read_now()
        turn += 1
        if block is None:
            block = source.read()
        if not block:
            break
        assert len(block) <= SLAB
        got += block
    assert got == content[offset : offset + length]
    assert source.read_now() == source.read() == b""


def test_without_rwf_nowait_nothing_is_read_on_the_reactor_thread(
    file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, content = file
    monkeypatch.setattr(sender, "_NOWAIT", 0)

    def preadv(*_: object) -> int:
        raise AssertionError("read without RWF_NOWAIT")

    monkeypatch.setattr(os, "preadv", preadv)
    source = FileRange(fd, 5, SLAB + 5)
    assert source.read_now() is None
    assert source.read() + source.read() == content[5 : SLAB + 10]
    assert source.read_now() == b""


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO])
def test_what_the_page_cache_does_not_have_is_left_to_a_thread(
    file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def preadv(_fd: int, _buffers: object, _offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        raise OSError(number, "not now")

    monkeypatch.setattr(os, "preadv", preadv)
    source = FileRange(file[0], 0, 10)
    assert source.read_now() is None
    assert source.read() == file[1][:10]


def test_a_block_that_is_half_in_memory_is_taken_by_half(
    file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        half = bytearray(len(buffers[0]) // 2)
        got = real(fd, [half], offset, flags)
        buffers[0][: len(half)] = half
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    source = FileRange(file[0], 0, 10)
    assert source.read_now() == file[1][:5]
    assert source.read() == file[1][5:10]


@pytest.mark.parametrize("read", ["read", "read_now"])
def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path, read: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with path.open("rb") as opened:
        source = FileRange(opened.fileno(), 0, 10)
        assert getattr(source, read)() == b"12345"
        with pytest.raises(FileCutShort):
            getattr(source, read)()


def test_a_short_file_ends_a_transfer_with_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    consumer, disk = Consumer(), HandDisk()
    outcome: list[Failure] = []
    with path.open("rb") as opened:
        source = FileRange(opened.fileno(), 0, 10)
        done = Sender(disk).beginFileTransfer(source, consumer)  # type: ignore[arg-type]
        done.addErrback(outcome.append)
        while disk.waiting:
            disk.complete()
    assert isinstance(outcome[0].value, FileCutShort)
    assert consumer.written == b"12345"


@given(st.lists(st.lists(st.none() | st.binary(min_size=1, max_size=3), max_size=4), max_size=4))
def test_chained_sources_are_sent_one_after_the_other(
    scripts: list[list[bytes | None]],
) -> None:
    disk, consumer = HandDisk(), Consumer()
    outcome: list[object] = []
    # A None is a block that is not in memory, so something has to follow it there.
    played = [
        [b for block in s for b in ([None, b"*"] if block is None else [block])] for s in scripts
    ]
    expected = b"".join(block for script in played for block in script if block is not None)
    source = Chained(*(Script(disk, *script) for script in played))
    done = Sender(disk).beginFileTransfer(source, consumer)  # type: ignore[arg-type]
    done.addBoth(outcome.append)
    while disk.waiting:
        disk.complete()
    assert outcome == [None]
    assert consumer.written == expected


def test_a_chain_read_in_a_thread_goes_on_to_the_source_that_has_something() -> None:
    source = Chained(Text(b""), Text(b"ab"), Text(b""), Text(b"c"))
    assert [source.read() for _ in range(3)] == [b"ab", b"c", b""]
    assert source.read_now() == b""


def test_generated_blocks_are_made_in_threads_only() -> None:
    blocks = iter([b"a", b"b", b""])
    disk, consumer = HandDisk(), Consumer()
    outcome: list[object] = []

    def make() -> bytes:
        assert disk.running
        return next(blocks)

    done = Sender(disk).beginFileTransfer(Generated(make), consumer)  # type: ignore[arg-type]
    done.addBoth(outcome.append)
    while disk.waiting:
        disk.complete()
    assert outcome == [None]
    assert consumer.written == b"ab"


# The short way: from the file to the socket


class Lender(Consumer):
    """A consumer that lends one end of a pair of sockets; the test reads at the other.

    What is written waits until :meth:`flush`, as in a transport.
    """

    lends_socket = True

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.settimeout(20)
        self.waiting = b""
        self.turns: list[int] = []
        self.awaits_room = False

    def write(self, data: bytes) -> None:
        super().write(data)
        self.waiting += data

    def borrow(self) -> int | None:
        return None if self.waiting else self.ours.fileno()

    def sent(self, count: int) -> None:
        self.turns.append(count)

    def await_room(self) -> None:
        self.awaits_room = True

    def flush(self) -> bytes:
        """Play one turn of a reactor with a client that takes everything; return what came."""
        came, self.waiting = self.waiting, b""
        self.ours.setblocking(True)
        for start in range(0, len(came), 1 << 16):
            self.ours.sendall(came[start : start + (1 << 16)])
            assert self.theirs.recv(1 << 16, socket.MSG_WAITALL | socket.MSG_PEEK)
            self.theirs.recv(len(came[start : start + (1 << 16)]), socket.MSG_WAITALL)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        while True:
            try:
                came += self.theirs.recv(1 << 20)
            except BlockingIOError:
                break
        if self.producer is not None and self.awaits_room:
            self.awaits_room = False
            self.producer.resumeProducing()
        return came


def _send(source: Source, consumer: Lender, disk: HandDisk) -> tuple[bytes, list[Any]]:
    outcome: list[Any] = []
    done = Sender(disk).beginFileTransfer(source, consumer)  # type: ignore[arg-type]
    done.addBoth(outcome.append)
    came = consumer.flush()
    while not outcome or consumer.waiting:
        if disk.waiting:
            disk.complete()
        came += consumer.flush()
    came += consumer.flush()
    return came, outcome


_SPANS = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE))


@given(st.lists(st.tuples(st.binary(max_size=3), _SPANS), min_size=1, max_size=3))
def test_texts_and_ranges_reach_the_socket_in_order_whichever_way_they_go(
    file: tuple[int, bytes], pieces: list[tuple[bytes, tuple[int, int]]]
) -> None:
    fd, content = file
    sources: list[Source] = []
    expected = b""
    for text, (first, wanted) in pieces:
        length = min(wanted, SIZE - first)
        sources += [Text(text), FileRange(fd, first, length)]
        expected += text + content[first : first + length]
    consumer = Lender()
    came, outcome = _send(Chained(*sources), consumer, HandDisk())
    assert outcome == [None]
    assert came == expected
    assert sum(consumer.turns) + len(consumer.written) == len(expected)


def test_a_file_in_memory_goes_to_the_socket_by_the_kernel_in_turns_of_bounded_size(
    file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = os.sendfile

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        asked.append(count)
        return real(out, fd, offset, count)

    monkeypatch.setattr(os, "sendfile", sendfile)
    consumer, disk = Lender(), HandDisk()
    came, _ = _send(FileRange(file[0], 0, SIZE), consumer, disk)
    assert came == file[1]
    assert sum(consumer.turns) > SIZE - BLOCK
    assert max(asked) <= TURN
    assert disk.waiting == []


@pytest.mark.parametrize(
    "answer", [BlockingIOError(), OSError(errno.EINVAL, "no sendfile"), OSError(errno.EIO, "disk")]
)
def test_what_sendfile_refuses_once_is_sent_all_the_same(
    file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch, answer: OSError
) -> None:
    answers = [answer]
    real = os.sendfile

    def sendfile(*args: int) -> int:
        if answers:
            raise answers.pop()
        return real(*args)

    monkeypatch.setattr(os, "sendfile", sendfile)
    came, outcome = _send(FileRange(file[0], 0, SIZE), Lender(), HandDisk())
    assert (came, outcome, answers) == (file[1], [None], [])


def test_what_is_not_in_memory_never_goes_to_the_socket_on_the_reactor_thread(
    file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sendfile(*_: int) -> int:
        raise AssertionError("waited for the disk on the reactor thread")

    monkeypatch.setattr(os, "sendfile", sendfile)
    monkeypatch.setattr(pagecache, "cached", lambda *_: 0)
    came, outcome = _send(FileRange(file[0], 0, SIZE), Lender(), HandDisk())
    assert (came, outcome) == (file[1], [None])


def test_a_file_cut_short_is_an_error_the_short_way_as_well(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SLAB))
    with path.open("rb") as opened:
        came, outcome = _send(FileRange(opened.fileno(), 0, 2 * SLAB), Lender(), HandDisk())
    assert came == bytes(SLAB)
    assert isinstance(outcome[0].value, FileCutShort)


def test_a_sender_that_waits_for_room_ends_when_it_is_stopped(file: tuple[int, bytes]) -> None:
    consumer, outcome = Lender(), list[Any]()
    sending = Sender(HandDisk())  # type: ignore[arg-type]
    done = sending.beginFileTransfer(FileRange(file[0], 0, SIZE), consumer)  # type: ignore[arg-type]
    done.addBoth(outcome.append)
    assert consumer.awaits_room
    sending.stopProducing()
    sending.resumeProducing()
    assert isinstance(outcome[0].value, ConsumerGone)
    assert len(consumer.turns) == 1
