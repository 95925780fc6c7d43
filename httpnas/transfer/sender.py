"""From the disk to the network, without waiting for the disk on the reactor thread, and without
holding a pool thread while the peer is slow.

Bytes go one of two ways. The general one reads a block (from memory at once, from the disk in a
pool thread) and writes it to the consumer. The short one is for a stretch of a file that is in
memory, and a consumer that lends its plain socket: sendfile(2) gives the pages of the file to the
socket, and this process copies nothing. Each turn of the reactor sends at most :data:`TURN` bytes
of a transfer, so others have their turns in between.

sendfile(2) would wait for the disk. So the kernel is asked first what it has in memory
(:mod:`httpnas.storage.pagecache`). What it lacks, and whatever goes wrong, is left to the general
way, which knows all errors. It brings the next pages to memory, because the kernel reads ahead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.storage import pagecache
from httpnas.storage.errors import FileCutShort
from httpnas.transfer.disk import Runs

#: Bytes read at a time from memory, on the reactor thread.
BLOCK = 64 << 10
#: Bytes read at a time from the disk, in a pool thread.
SLAB = 128 << 10
#: Bytes that the disk is asked to have ready then: it reads much at once better than little, and
#: memory is held for what the client takes next.
READ_AHEAD = 1 << 20
#: The most bytes given to a socket in one turn of the reactor: about a millisecond's work.
TURN = 2 << 20
#: A shorter rest is copied: that costs less than asking what is in memory.
_SHORT = 128 << 10
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
#: What the reactor thread reads into.
_BUFFER = memoryview(bytearray(BLOCK))


class ConsumerGone(Exception):
    """The peer went away before it had been sent everything."""


class Source(Protocol):
    """What a :class:`Sender` sends."""

    def read_now(self) -> bytes | None:
        """Return the next block, ``b""`` at the end, or None when it must come from the disk."""

    def read(self) -> bytes:
        """Wait for the next block and return it, ``b""`` at the end."""

    def stretch(self) -> FileRange | None:
        """Return the long stretch of a file that comes next, if one does."""


class Outlet(Protocol):
    """A consumer that may lend its socket: one that has the attribute :attr:`lends_socket`."""

    @property
    def lends_socket(self) -> bool:
        """Whether it ever does: not when bytes are encrypted or framed on their way."""

    def borrow(self) -> int | None:
        """Return the descriptor of the socket, None while earlier bytes wait for it."""

    def sent(self, count: int) -> None:
        """Note that the socket has taken *count* bytes."""

    def await_room(self) -> None:
        """Resume the producer once all bytes have gone and the socket takes more."""


class FileRange:
    """A range of the bytes of an open file.

    :param fd: its descriptor.
    :param offset: where it begins, in bytes.
    :param length: how many bytes; the file must have them.
    """

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._fd = fd
        self._offset = offset
        self._end = offset + length
        self._sendable: bool | None = None

    def read_now(self) -> bytes | None:
        """Return the next block if the page cache has it (preadv2(2) with RWF_NOWAIT).

        :raises FileCutShort: when somebody has cut the file short.
        """
        wanted = min(BLOCK, self._end - self._offset)
        if not wanted:
            return b""
        if not _NOWAIT:
            return None
        try:
            got = os.preadv(self._fd, [_BUFFER[:wanted]], self._offset, _NOWAIT)
        except OSError:
            return None  # a thread will meet the same error, if it is one
        return self._taken(bytes(_BUFFER[:got]))

    def read(self) -> bytes:
        """Return the next block from the disk.

        :raises FileCutShort: when somebody has cut the file short.
        :raises OSError: as pread(2).
        """
        wanted = min(SLAB, self._end - self._offset)
        if not wanted:
            return b""
        ahead = min(READ_AHEAD, self._end - self._offset)
        os.posix_fadvise(self._fd, self._offset, ahead, os.POSIX_FADV_WILLNEED)
        return self._taken(os.pread(self._fd, wanted, self._offset))

    def stretch(self) -> FileRange | None:
        """Return this range while enough of it is left."""
        return self if self._end - self._offset > _SHORT else None

    def send_now(self, socket: int, most: int) -> int | None:
        """Give what comes next to a socket that never blocks, as far as it is in memory.

        :param socket: its descriptor.
        :param most: the most bytes to give.
        :return: how many it has taken, None when :meth:`read_now` has to go on.
        """
        if self._sendable is None:
            self._sendable = bool(_NOWAIT) and pagecache.tells(self._fd)
        if not self._sendable:
            return None
        ready = pagecache.cached(self._fd, self._offset, min(most, self._end - self._offset))
        if ready < _SHORT:
            return None
        try:
            sent = os.sendfile(socket, self._fd, self._offset, ready)
        except BlockingIOError:
            return 0
        except OSError:
            return None  # the general way will meet the same error, if it is one
        self._offset += sent
        return sent or None

    def _taken(self, block: bytes) -> bytes:
        if not block:
            raise FileCutShort("the file is shorter than it was")
        self._offset += len(block)
        return block


class Text:
    """Bytes that are in memory already."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._offset = 0

    def read_now(self) -> bytes:
        """Return the next block."""
        block = self._text[self._offset : self._offset + BLOCK]
        self._offset += len(block)
        return block

    read = read_now

    def stretch(self) -> None:
        """Return None: nothing comes from a file."""


class Generated:
    """Blocks made one at a time by a blocking function.

    :param make: returns the next block, ``b""`` at the end; called in pool threads.
    """

    def __init__(self, make: Callable[[], bytes]) -> None:
        self.read = make

    def read_now(self) -> None:
        """Return None: every block has to be waited for."""

    stretch = read_now


class Chained:
    """Several sources, one after the other."""

    def __init__(self, *sources: Source) -> None:
        self._sources = list(sources)

    def read_now(self) -> bytes | None:
        """Return the next block of the first source that has not ended."""
        return self._next(lambda source: source.read_now())

    def read(self) -> bytes:
        """Return the next block of the first source that has not ended, waiting for it."""
        return self._next(lambda source: source.read()) or b""

    def stretch(self) -> FileRange | None:
        """Return what the first source has."""
        return self._sources[0].stretch() if self._sources else None

    def _next(self, read: Callable[[Source], bytes | None]) -> bytes | None:
        while self._sources:
            block = read(self._sources[0])
            if block != b"":
                return block
            self._sources.pop(0)
        return b""


@implementer(IPushProducer)
class Sender(FileSender):
    """Sends one source to one consumer, as fast as the consumer takes it.

    Its base class is a pull producer, which must have a block whenever it is asked. This one is a
    push producer, because a block may have to come from the disk.

    :param disk: reads the blocks that are not in memory, None if all are.
    """

    file: Source | None
    consumer: IConsumer
    deferred: Deferred[Any] | None

    def __init__(self, disk: Runs | None = None) -> None:
        self._disk = disk
        self._paused = False
        self._reading = False
        self._failure: Failure | None = None
        self._outlet: Outlet | None = None
        self._window = TURN

    def beginFileTransfer(
        self, file: Source, consumer: IConsumer, transform: object = None
    ) -> Deferred[None]:
        """Send all of *file*, a :class:`Source`, to *consumer*.

        :return: fires when all has been given to the consumer and no read is running. It fails with
            :exc:`ConsumerGone` when the consumer has stopped it, or with the error of a read.
        """
        self.file = file
        self.consumer = consumer
        self.deferred = done = Deferred[None]()
        consumer.registerProducer(self, True)
        if getattr(consumer, "lends_socket", False):
            self._outlet = cast(Outlet, consumer)
        self._pump()
        return done

    def pauseProducing(self) -> None:
        """Give no more blocks for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Give blocks again."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """Give no more blocks at all."""
        self._end(Failure(ConsumerGone("the client went away during the download")))

    def _pump(self) -> None:
        while self.file is not None and not self._paused and not self._reading:
            if self._outlet is not None and self._lend(self._outlet, self.file.stretch()):
                return
            try:
                block = self.file.read_now()
            except Exception:
                self._fail(Failure())
                return
            if block is None:
                assert self._disk is not None
                self._reading = True
                self._disk.run(self.file.read).addCallbacks(self._have_read, self._fail)
                return
            self._deliver(block)

    def _lend(self, outlet: Outlet, stretch: FileRange | None) -> bool:
        """Send what comes next the short way; tell whether the socket has to take it first."""
        if stretch is None:
            return False
        socket = outlet.borrow()
        if socket is not None:
            sent = stretch.send_now(socket, self._window)
            if sent is None:
                return False
            outlet.sent(sent)
            # A slow client takes little at a time, so little is asked about.
            self._window = min(TURN, max(2 * sent, 2 * _SHORT))
        outlet.await_room()
        return True

    def _have_read(self, block: bytes) -> None:
        self._reading = False
        if self.file is None:
            self._settle()
            return
        self._deliver(block)
        self._pump()

    def _deliver(self, block: bytes) -> None:
        if block:
            self.consumer.write(block)
        else:
            self.consumer.unregisterProducer()
            self._end(None)

    def _fail(self, failure: Failure) -> None:
        self._reading = False
        if self.file is not None:
            self.consumer.unregisterProducer()
        self._end(failure)

    def _end(self, failure: Failure | None) -> None:
        if self.file is not None:
            self.file = None
            self._failure = failure
        if not self._reading:
            self._settle()

    def _settle(self) -> None:
        if self.deferred is not None:
            done, self.deferred = self.deferred, None
            done.callback(None) if self._failure is None else done.errback(self._failure)
