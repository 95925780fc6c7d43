"""From the network to the disk: a consumer that gathers chunks and writes them in pool threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.transfer.budget import Budget
from httpnas.transfer.disk import Disk

#: Bytes gathered before they are written: large enough that the hop to a thread costs little.
SLAB = 1 << 20
#: Bytes accepted and not yet written at which the producer is paused.
HIGH_WATER = 2 << 20
#: Both, for a sink that gets no more memory than each request has: it writes more often.
LITTLE_SLAB = 64 << 10
LITTLE_WATER = 128 << 10
#: The part of the memory that is left to new requests.
KEEP = 0.5
#: Chunks of fewer bytes are joined: each costs memory and time of its own beside its bytes.
SMALL = 4 << 10


@implementer(IConsumer)
class Sink:
    """Takes a stream of chunks and hands them in order, in slabs, to a blocking *write*.

    One slab is written while the next one is gathered. What is held is bounded in bytes: at
    :data:`HIGH_WATER` the producer is paused. It may exceed that by what it has read already.
    When memory is scarce, the bounds are :data:`LITTLE_SLAB` and :data:`LITTLE_WATER`: it writes
    more often, and a client that stalls holds little.

    :param disk: runs *write*.
    :param write: stores a slab, which is a sequence of chunks. Its first failure stops the
        producer.
    :param memory: where :data:`HIGH_WATER` bytes are borrowed from until it is closed.
    """

    def __init__(
        self, disk: Disk, write: Callable[[Sequence[bytes]], object], memory: Budget
    ) -> None:
        self._disk = disk
        self._memory = memory
        self._has_borrowed = False
        self._write = write
        self._producer: IPushProducer | None = None
        self._gathered: list[bytes] = []
        self._joined = bytearray()
        self._gathered_bytes = 0
        self._writing_bytes = 0
        self._paused = False
        self._failure: Failure | None = None
        self._idle: Deferred[None] | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Take chunks from *producer*, a push producer, from now on."""
        self._producer = IPushProducer(producer)

    def unregisterProducer(self) -> None:
        """Take no more chunks from the producer."""
        self._producer = None

    def write(self, data: bytes) -> None:
        """Take one chunk. Once a write has failed it is dropped."""
        if self._failure is not None or not data:
            return
        if len(data) < SMALL:
            self._joined += data
        else:
            self._seal()
            self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= LITTLE_SLAB:
            self._flush()
        if not self._paused and self._is_full():
            self._paused = True
            if self._producer is not None:
                self._producer.pauseProducing()

    def finish(self) -> Deferred[list[bytes]]:
        """Take no more chunks.

        :return: fires when no write is running any more, with the chunks that are left to be
            written (about :data:`HIGH_WATER` at most). If a write has failed, it fails with the
            first error.
        """
        self._seal()
        return self._until_idle().addCallback(lambda _: self._gathered)

    def abandon(self) -> Deferred[None]:
        """Drop what is left.

        :return: fires, never with a failure, when no write is running any more.
        """
        self._drop()
        return self._until_idle().addErrback(lambda failure: None)

    def close(self) -> None:
        """Give back the memory; nothing that it has taken is held any more."""
        if self._has_borrowed:
            self._has_borrowed = False
            self._memory.give_back(HIGH_WATER)

    def _until_idle(self) -> Deferred[None]:
        self._idle = idle = Deferred[None]()
        self._note_idle()
        return idle

    def _note_idle(self) -> None:
        if self._idle is not None and not self._writing_bytes:
            idle, self._idle = self._idle, None
            idle.errback(self._failure) if self._failure is not None else idle.callback(None)

    def _seal(self) -> None:
        """Let what comes next begin a new chunk."""
        if self._joined:
            self._gathered.append(bytes(self._joined))
            self._joined.clear()

    def _borrow(self) -> bool:
        """Return whether there is memory for large slabs."""
        if not self._has_borrowed:
            self._has_borrowed = self._memory.take(HIGH_WATER, KEEP)
        return self._has_borrowed

    def _is_full(self) -> bool:
        most = HIGH_WATER if self._has_borrowed else LITTLE_WATER
        return self._gathered_bytes + self._writing_bytes >= most

    def _flush(self) -> None:
        if self._writing_bytes or self._idle is not None:
            return
        if self._gathered_bytes >= (SLAB if self._borrow() else LITTLE_SLAB):
            self._seal()
            slab, self._gathered = self._gathered, []
            self._writing_bytes, self._gathered_bytes = self._gathered_bytes, 0
            self._disk.run(self._write, slab).addCallbacks(self._written, self._failed)

    def _written(self, _: object) -> None:
        self._writing_bytes = 0
        if self._gathered_bytes >= LITTLE_SLAB:
            self._flush()
        if self._paused and not self._is_full():
            self._paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
        self._note_idle()

    def _failed(self, failure: Failure) -> None:
        self._writing_bytes = 0
        self._failure = failure
        self._drop()
        if self._producer is not None:
            self._producer.stopProducing()
        self._note_idle()

    def _drop(self) -> None:
        self._gathered, self._gathered_bytes = [], 0
        self._joined.clear()
