"""One connection: it takes requests from the bytes that come, one at a time, and sends the answers.

It is fast because little happens for each request. A head that has come whole is taken apart in one
step (:mod:`.head`). The request is handed on when its head is complete, and its body is passed on
as it comes, a read of the socket at a time. Head and content of a short answer are one write.

What it holds is bounded. The next request is taken when the answer before it has gone to the
transport, and the transport has room. Further ones wait in a buffer, and reading pauses when that
is full. Each is taken in a turn of the reactor of its own, so that clients who send many at once do
not hold up others.

A client that has closed for writing may still wait for its answers, or it has gone: that looks the
same. So it is sent an interim answer if it has to wait, which one that has gone resets.
"""

from __future__ import annotations

import select
from contextlib import suppress
from functools import cached_property
from http import HTTPStatus
from typing import Any, Protocol

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import protocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    INegotiated,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.web.server import request
from httpnas.web.server.body import HELD
from httpnas.web.server.chunks import Chunks, Counted
from httpnas.web.server.deadlines import Deadlines, Limits
from httpnas.web.server.head import Head, HeadReader, HeadRefused, new_identity
from httpnas.web.server.places import Share
from httpnas.web.server.request import Ending, StreamingRequest

#: Bytes read at a time between bodies, and the bytes of answers that may wait for the socket before
#: a download pauses.
READ = 64 << 10
#: Bytes of a body that are read at a time, which makes uploads a fifth faster than with fewer.
READ_OF_BODY = 256 << 10
#: Bytes read at a time from who sends a body in tiny chunks, and so costs much for each byte.
READ_OF_TINY = 16 << 10
#: Bytes that a body may have to be there, if it came with the head, before the request is handled.
WITH_HEAD = HELD - 1
#: Bytes of later requests that are taken while one is handled. Beyond that, reading pauses.
AHEAD = 16 << 10


class Site(request.Site, Protocol):
    """The site of a connection."""

    limits: Limits
    share: Share
    channels: set[StreamingChannel]
    request_class: type[StreamingRequest]

    def take_place(self) -> bool:
        """Return whether there is a place for another connection."""

    def add_extra(self, channel: StreamingChannel) -> None:
        """Keep *channel* without a place, in the stead of another one if those are too many."""

    def give_back_place(self) -> None:
        """Note that a connection that had a place is closed."""

    def take_room(self, length: int | None) -> bool:
        """Return whether there is room for another request, with a body of *length* bytes."""

    def give_back_room(self) -> None:
        """Note that a request that had room has ended, and its answer has been taken."""

    def forget(self, channel: StreamingChannel) -> None:
        """Note that *channel* is closed."""


@implementer(IPushProducer, IHalfCloseableProtocol)
class StreamingChannel(protocol.Protocol):
    """One connection and the request that it is at.

    :param site: what it belongs to.
    :ivar requests: the request that it is at, if it is at one.
    :ivar persistent: whether another request may follow.
    :ivar client: the address of the client.
    :ivar has_share: whether its client may have it besides the others that it has.
    :ivar has_place: whether it may be kept; else it is closed after one request.
    :ivar lends_socket: whether bytes go to the socket as they are, and not through TLS.
    :ivar is_secure: whether they go through TLS.
    """

    _log = Logger()
    transport: Any

    def __init__(self, site: Site) -> None:
        self.site = site
        self.requests: list[StreamingRequest] = []
        self.persistent = True
        self.deadlines = Deadlines(
            self, site.limits, site.backend, site.reactor.seconds, lambda: self.is_last
        )
        #: What has come and was not taken: the beginning of a head, or requests that have to wait.
        self._buffer = b""
        self._heads = HeadReader()
        self._body: Chunks | Counted | None = None
        self._producer: IPushProducer | None = None
        self._deaf = self._ended = self._asked = False
        #: Whether a request that is here already will be taken in the next turn of the reactor.
        self._is_due = False
        self.has_share = self.has_place = self._has_room = False
        self._lent = 0
        self._awaits_room = self._is_blocked = False

    def connectionMade(self) -> None:
        """Begin to watch over the connection."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.client = self.transport.getPeer()
        self.lends_socket = isinstance(self.transport, Connection)
        self.is_secure = INegotiated.providedBy(self.transport)
        self.transport.bufferSize = READ
        self.transport.registerProducer(self, True)
        self.has_share = self.site.share.take(self._host)
        self.has_place = self.has_share and self.site.take_place()
        self.site.channels.add(self)
        if not self.has_place:
            self.site.add_extra(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the request, if there is one."""
        self._deaf = True
        for under_way in self.requests:
            under_way.left()
            # Its handler runs on, and what that holds is not there for others yet.
            under_way.at_its_end(self._leave_room)
        if not self.requests:
            self._leave_room()
        if self.has_place:
            self.site.give_back_place()
        if self.has_share:
            self.site.share.give_back(self._host)
        self.site.forget(self)

    @property
    def _host(self) -> str | None:
        host: str | None = getattr(self.client, "host", None)
        return host

    def _leave_room(self) -> None:
        if self._has_room:
            self._has_room = False
            self.site.give_back_room()

    @cached_property
    def certificate(self) -> bytes | None:
        """The certificate of the client, in DER, once the first request has come.

        TLS has verified it: clients are asked for one only to do that.
        """
        if not self.is_secure:
            return None
        shown = self.transport.getHandle().get_peer_certificate(as_cryptography=True)
        return None if shown is None else bytes(shown.public_bytes(Encoding.DER))

    @property
    def is_last(self) -> bool:
        """Whether it is closed after the request that it is at."""
        is_all = self._ended and not self._buffer
        return is_all or self.site.draining or not self.has_place

    # Writing

    def write(self, *pieces: bytes) -> None:
        """Send *pieces*, one after the other, as one write."""
        self.transport.writeSequence(pieces)

    def write_head(self, *pieces: bytes) -> None:
        """Send the head of an answer and what comes with it, at once if the socket takes it.

        The transport would wait for the next turn of the reactor, and ask the kernel twice for it.
        """
        transport, data = self.transport, b"".join(pieces)
        if self.lends_socket and transport.connected and not self._buffered():
            # When there is no room, or an error, the transport will meet the same.
            with suppress(OSError):
                data = data[transport.socket.send(data) :]
        transport.write(data)

    def send_continue(self) -> None:
        """Tell the client to send the body (RFC 9110 section 15.2.1)."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def unsent(self) -> int:
        """Return how many bytes wait for the socket; TLS does not tell.

        What goes to the lent socket never waits, so it is taken off: the client has moved on.
        """
        return self._buffered() - self._lent

    def _buffered(self) -> int:
        buffered = len(getattr(self.transport, "dataBuffer", b""))
        sent = getattr(self.transport, "offset", 0)
        return int(buffered - sent + getattr(self.transport, "_tempDataLen", 0))

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let *producer*, a push producer, send the content of an answer."""
        self._producer = producer

    def unregisterProducer(self) -> None:
        """Note that the producer has sent everything."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Note that the client takes nothing more for now; it has to before it may ask for more."""
        self._is_blocked = True
        self.deadlines.block()
        if self._producer is not None:
            self._producer.pauseProducing()
        if not self.requests:
            self.network.pauseProducing()

    def resumeProducing(self) -> None:
        """Note that the client has taken what there was.

        A lent socket has room again and again, which is no progress by itself.
        """
        had_awaited, self._awaits_room, self._is_blocked = self._awaits_room, False, False
        if not had_awaited:
            self.deadlines.unblock()
        if self._producer is not None:
            self._producer.resumeProducing()
        if not self._is_blocked:
            self.deadlines.unblock()
        self._go_on()

    def stopProducing(self) -> None:
        """Stop sending: the connection is about to be lost."""
        if self._producer is not None:
            self._producer.stopProducing()

    # Lending the socket (:class:`httpnas.transfer.sender.Outlet`)

    def borrow(self) -> int | None:
        """Return the descriptor of the socket, None while bytes wait for it."""
        return None if self._buffered() else int(self.transport.fileno())

    def sent(self, count: int) -> None:
        """Note that the lent socket has taken *count* bytes."""
        self._lent += count

    def await_room(self) -> None:
        """Resume the producer once the socket takes more."""
        self._awaits_room = self._is_blocked = True
        self.deadlines.block()
        self.transport.producerPaused = True
        self.transport.startWriting()

    # Reading

    @property
    def network(self) -> IPushProducer:
        """What is paused to read no more from the client."""
        transport: IPushProducer = self.transport
        return transport

    def dataReceived(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._deaf:
            return
        if self._body is not None:
            self._take_content(self._body, data)
            return
        self._buffer = self._buffer + data if self._buffer else data
        if not self._waits():
            self._take_request()
        elif self._ahead() > AHEAD:
            self.network.pauseProducing()

    def _ahead(self) -> int:
        """Return how many bytes wait behind the request that is being handled."""
        return len(self._buffer)

    def _take_request(self) -> None:
        if self.deadlines.is_idle:
            self.deadlines.enter_head()
        try:
            head, self._buffer = self._heads.take(self._buffer)
            if head is not None:
                self._begin(head, self._length_of(head))
        except HeadRefused as refusal:
            if refusal.head is not None:
                self._note(self.site.request_class(self, refusal.head))
            self.refuse(refusal.status, refusal.detail)
        if self._buffer and self._waits() and self._ahead() > AHEAD:
            self.network.pauseProducing()

    def _waits(self) -> bool:
        """Return whether what has come has to wait for something else than more bytes."""
        if self._deaf:
            return False
        return bool(self.requests) or self._is_due or self.deadlines.is_blocked

    def _length_of(self, head: Head) -> int | None:
        try:
            return head.check()
        except HeadRefused as refusal:
            refusal.head = head
            raise

    def _note(self, received: StreamingRequest) -> None:
        self.requests.append(received)
        self.deadlines.enter_body(received)

    def _begin(self, head: Head, length: int | None) -> None:
        """Hand on the request with *head*, and what has come of its body."""
        received = self.site.request_class(self, head, length)
        self.persistent = head.is_persistent
        self._note(received)
        self._has_room = received.has_room = self.has_place and self.site.take_room(length)
        if length is not None and length <= min(len(self._buffer), WITH_HEAD):
            content, self._buffer = self._buffer[:length], self._buffer[length:]
            received.body.data_received(content)
            received.body.end()
            received.process()
            return
        take = received.data_received
        self._body = (
            Chunks(take, self._end_content)
            if length is None
            else Counted(length, take, self._end_content)
        )
        self.transport.bufferSize = READ_OF_BODY
        content, self._buffer = self._buffer, b""
        received.process()
        if content and not self._deaf:
            self._take_content(self._body, content)

    def _take_content(self, body: Chunks | Counted, data: bytes) -> None:
        try:
            body.dataReceived(data)
        except HeadRefused as refusal:
            self.refuse(refusal.status, refusal.detail)
        if self._body is not None:
            is_tiny = body.decoded < len(data) // 2
            self.transport.bufferSize = READ_OF_TINY if is_tiny else READ_OF_BODY

    def _end_content(self, behind: bytes) -> None:
        """Note that the body is complete; *behind* it, other bytes have come."""
        if self._deaf:
            return
        self._body, self._buffer = None, behind
        self.requests[0].content_received()
        if self.requests and self._ahead() > AHEAD:
            self.network.pauseProducing()

    def requestDone(self, done: StreamingRequest) -> None:
        """Go on to the next request: in a later turn of the reactor, if it is here already."""
        self.deadlines.enter_idle()
        self.requests.remove(done)
        self.transport.bufferSize = READ
        if self.is_last or not self.persistent:
            if self._ahead() > AHEAD:
                # Others wait unread in the kernel, which would destroy the answer when it closes.
                self.linger()
                return
            self._deaf = True
            self._lose()
        elif self._buffer:
            self._is_due = True
            self.site.reactor.callLater(0, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take the next request, unless the client has to take answers first."""
        self._is_due = False
        if self.requests or self._deaf or self.deadlines.is_blocked:
            return
        self._leave_room()
        self._asked = False
        if not self._ended:
            self.network.resumeProducing()
        if self._buffer:
            self._take_request()
        if self._ended and (self._body is not None or not self.requests):
            self._end()

    # A client that sends nothing more

    def readConnectionLost(self) -> None:
        """Answer what has come. The client has closed its side, or all: that looks the same."""
        self._ended = True
        if self._body is not None or self._deaf:
            self._end()
        else:
            self._go_on()

    def writeConnectionLost(self) -> None:
        """Go on: the client ends what is read from it, or a deadline does."""

    def probe(self) -> None:
        """Find out whether a client that sends nothing more is still there; called once a second.

        One that has closed all resets the connection as soon as it is sent something. An interim
        response is what can be sent before there is an answer (RFC 9110 section 15.2).
        """
        if not self._ended or self._deaf or not self.requests:
            return
        waiting = self.requests[0]
        if _is_reset(self.transport.fileno()):
            self.transport.connectionLost(Failure(ConnectionDone()))
        elif not (self._asked or waiting.startedWriting) and waiting.head.version == b"HTTP/1.1":
            self._asked = True
            self.send_continue()

    def _end(self) -> None:
        """Close: what there is of a request, if anything, will not be completed."""
        for incomplete in self.requests:
            incomplete.left()
        self._deaf = True
        self._lose()

    # Ending

    def refuse(self, status: int, detail: str) -> None:
        """Answer a request that cannot be understood, and close.

        :param status: the status code of the answer.
        :param detail: what is wrong with the request, for the client.
        """
        if self._deaf:
            return
        identity = new_identity()
        started = False
        if self.requests:
            refused = self.requests[-1]
            identity, started = refused.id, refused.startedWriting
            refused.refused(status)
        else:
            self._log.info(
                "refused {id} with {status}: {detail}", id=identity, status=status, detail=detail
            )
        if not started:
            self._write_refusal(status, detail, identity)
        self.linger()

    def _write_refusal(self, status: int, detail: str, identity: str) -> None:
        content_type, content = self.site.application.refusal(status, detail, identity)
        self.write(
            b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode()),
            b"X-Request-ID: %s\r\n" % identity.encode(),
            *(b"%s: %s\r\n" % field for field in self.site.application.fields),
            b"Content-Type: %s\r\n" % content_type,
            b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(content),
            content,
        )

    def begin_drain(self) -> None:
        """Begin to wait for the end of a body that nobody wants."""
        self.deadlines.enter_drain()

    def linger(self) -> None:
        """Close for writing, and let the client read what was written before all is closed.

        See RFC 9112 section 9.6.
        """
        if self._deaf:
            return
        self._deaf = True
        self.deadlines.enter_linger()
        if self._ended:
            self._lose()
            return
        self.network.resumeProducing()
        if self.lends_socket:
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()
        else:
            self._lose()  # TLS says that nothing follows, and waits until the client says so, too

    def give_way(self) -> None:
        """End it, as others need its place and no request is under way on it."""
        if self.deadlines.is_idle:
            self.close()
        else:
            self.refuse(408, "The daemon is full, and the headers of the request took too long.")

    def close(self) -> None:
        """Close, after what was written has gone out or the time to linger is over."""
        self._deaf = True
        self.deadlines.enter_linger()
        self._lose()

    def _lose(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Cut the connection at once, whatever was written."""
        self.transport.abortConnection()

    def cut_off_slow_client(self) -> None:
        """Cut the connection of a client that does not take what is sent to it."""
        for under_way in self.requests:
            under_way.ending = Ending.CLIENT_TOO_SLOW
        self.abort()


def _is_reset(fd: int) -> bool:
    """Return whether the peer of the socket *fd* has closed both sides (poll(2))."""
    looking = select.poll()
    looking.register(fd, 0)
    return bool(looking.poll(0))
