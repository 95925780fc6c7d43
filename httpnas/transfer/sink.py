"""From the network to the disk: a consumer that gathers chunks and writes them in pool threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.transfer.disk import Disk

#: Bytes gathered before they are written: large enough that the hop to a thread costs little.
SLAB = 1 << 20
#: Bytes accepted and not yet written at which the producer is paused.
HIGH_WATER = 2 << 20
#: Chunks of fewer bytes are joined: each costs memory and time of its own beside its bytes.
SMALL = 4 << 10


@implementer(IConsumer)
class Sink:
    """Takes a stream of chunks and hands them in order, in slabs, to a blocking *write*.

    One slab is written while the next one is gathered. What is held is bounded in bytes: at
    :data:`HIGH_WATER` the producer is paused. It may exceed that by what it has read already.

    :param disk: runs *write*.
    :param write: stores a slab, which is a sequence of chunks. Its first failure stops the
        producer.
    """

    def __init__(self, disk: Disk, write: Callable[[Sequence[bytes]], object]) -> None:
        self._disk = disk
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
        if self._gathered_bytes >= SLAB:
            self._flush()
        if not self._paused and self._gathered_bytes + self._writing_bytes >= HIGH_WATER:
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

    def _flush(self) -> None:
        if self._gathered_bytes >= SLAB and not self._writing_bytes and self._idle is None:
            self._seal()
            slab, self._gathered = self._gathered, []
            self._writing_bytes, self._gathered_bytes = self._gathered_bytes, 0
            self._disk.run(self._write, slab).addCallbacks(self._written, self._failed)

    def _written(self, _: object) -> None:
        self._writing_bytes = 0
        self._flush()
        if self._paused and self._gathered_bytes + self._writing_bytes < HIGH_WATER:
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
