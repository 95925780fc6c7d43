"""The body of a request as a push producer, for any consumer (``twisted.internet.interfaces``)."""

from __future__ import annotations

import builtins
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

#: Bytes that are held for a handler that has not asked for the body yet.
HELD = 64 << 10


class BodyCutShort(Exception):
    """The client went away or broke the framing within the body (RFC 9112 section 8)."""


class BodyTooLarge(Exception):
    """The body has more bytes than :attr:`Body.limit`."""


class BodyTooSlow(Exception):
    """Too little of the body has come for too long."""


@implementer(IPushProducer)
class Body:
    """The body of one request, on its way in.

    :param length: how many bytes were announced, None for a chunked body.
    :param network: is paused while nobody takes the body.
    :param invite: is called to tell the client to send the body.
    :ivar limit: how many bytes it may have, None for any number.
    :ivar received: how many bytes have come so far.
    :ivar ended: whether all of it has come.
    :ivar paused: whether reading it from the client is paused.
    :ivar failure: why the rest will not come, None while it may.
    """

    def __init__(
        self, length: int | None, network: IPushProducer, invite: Callable[[], None]
    ) -> None:
        self.length = length
        self.limit: int | None = None
        self.received = 0
        self.ended = False
        self.paused = False
        self._network = network
        self._invite = invite
        self._held = bytearray()
        self._consumer: IConsumer | None = None
        self._delivered: Deferred[None] | None = None
        self.failure: Exception | None = None
        self._dropping = False

    # For handlers

    def deliver_to(self, consumer: IConsumer) -> Deferred[None]:
        """Ask the client for the body and give it to *consumer* as it comes.

        The exceptions come through the Deferred.

        :return: fires when the consumer has been given all of it, or has stopped it.
        :raises BodyCutShort: when the client has gone, or broken the framing.
        :raises BodyTooLarge: when it has more bytes than :attr:`limit`, which is the most that
            the consumer was given.
        :raises BodyTooSlow: when too little of it came for too long.
        :raises GivenUp: when the request was given up.
        """
        if self.failure is not None:
            return fail(self.failure)
        if not self.ended:
            self._invite()
        self._delivered = delivered = Deferred[None]()
        self._consumer = consumer
        consumer.registerProducer(self, True)
        self.resumeProducing()
        held, self._held = bytes(self._held), bytearray()
        if self._is_too_large():
            self.fail(BodyTooLarge())
        elif held:
            consumer.write(held)
        if self.ended:
            self._detach(None)
        return delivered

    def drop(self) -> None:
        """Read the rest of the body and throw it away."""
        self._held.clear()
        self._dropping = True
        self._resume()

    # For the consumer

    def pauseProducing(self) -> None:
        """Read no more from the client for now."""
        self._pause()

    def resumeProducing(self) -> None:
        """Read from the client again."""
        if not self.ended:
            self._resume()

    def stopProducing(self) -> None:
        """Give the consumer nothing more."""
        self._detach(None)

    # For the request

    @property
    def is_unclaimed(self) -> bool:
        """Whether nobody has asked for it yet, or it is too late to ask."""
        return self.failure is not None or (self._delivered is None and not self._dropping)

    def data_received(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self.received += len(chunk)
        if self._consumer is None:
            if self._delivered is None and not self._dropping:
                self._hold(chunk)
        elif self._is_too_large():
            self.fail(BodyTooLarge())
        else:
            self._consumer.write(chunk)

    def _is_too_large(self) -> bool:
        return self.limit is not None and self.received > self.limit

    def _hold(self, chunk: bytes) -> None:
        self._held += chunk
        if self.received >= HELD:
            self._pause()

    def end(self) -> None:
        """Note that all of the body has come."""
        self.ended = True
        self._detach(None)

    def fail(self, reason: Exception) -> None:
        """Expect no more of the body: whoever waits for it, or asks for it later, gets *reason*."""
        self._held.clear()
        self.failure = reason
        self._detach(Failure(reason))

    def _detach(self, failure: Failure | None) -> None:
        if self._consumer is None or self._delivered is None:
            return
        self._consumer.unregisterProducer()
        self._consumer = None
        if not self.ended:
            self._pause()
        self._delivered.errback(failure) if failure else self._delivered.callback(None)

    def _pause(self) -> None:
        self.paused = True
        self._network.pauseProducing()

    def _resume(self) -> None:
        self.paused = False
        self._network.resumeProducing()


@implementer(IConsumer)
class Collected:
    """A consumer that keeps a short body in memory. Set :attr:`Body.limit` to bound it."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def bytes(self) -> builtins.bytes:
        """What has come so far."""
        return builtins.bytes(self._bytes)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Take what *producer* gives; it is never paused."""

    def unregisterProducer(self) -> None:
        """Take nothing more."""

    def write(self, data: builtins.bytes) -> None:
        """Take the next bytes."""
        self._bytes += data
