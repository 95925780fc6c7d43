"""One connection: stricter than Twisted's in what it takes, and with deadlines of its own."""

from __future__ import annotations

import select
import socket
import uuid
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from httpnas.web.server import request
from httpnas.web.server.chunks import Chunks
from httpnas.web.server.deadlines import Deadlines, Limits
from httpnas.web.server.head import (
    Head,
    HeadRefused,
    check_framing,
    check_whole,
    identity_of,
    is_persistent,
    line_too_long,
)
from httpnas.web.server.request import Ending, StreamingRequest

#: Bytes read at a time between bodies, and the bytes of answers that may wait for the socket before
#: a download pauses.
READ = 64 << 10
#: Bytes of a body that are read at a time, which makes uploads a fifth faster than with fewer.
READ_OF_BODY = 256 << 10
#: Bytes read at a time from who sends a body in tiny chunks, and so costs much for each byte.
READ_OF_TINY = 16 << 10
#: Bytes of later requests that are taken while one is handled. Beyond that, reading pauses.
AHEAD = 16 << 10


class Site(request.Site, Protocol):
    """The site of a connection."""

    limits: Limits
    channels: set[StreamingChannel]

    def take_place(self) -> bool:
        """Return whether there is a place for another connection."""

    def add_extra(self, channel: StreamingChannel) -> None:
        """Keep *channel* without a place, in the stead of another one if those are too many."""

    def give_back_place(self) -> None:
        """Note that a connection that had a place is closed."""

    def take_room(self) -> bool:
        """Return whether there is room for another request."""

    def give_back_room(self) -> None:
        """Note that a request that had room has ended, and its answer has been taken."""

    def forget(self, channel: StreamingChannel) -> None:
        """Note that *channel* is closed."""


class _Ended:
    """A network that brings nothing more: the client has closed its side."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def pauseProducing(self) -> None:
        """Nothing is read."""

    resumeProducing = pauseProducing

    def unregisterProducer(self) -> None:
        """See :class:`twisted.internet.interfaces.IConsumer`."""
        self._transport.unregisterProducer()


@implementer(IHalfCloseableProtocol)
class StreamingChannel(http.HTTPChannel):
    """One connection and the request that it is at; further ones wait in its buffer.

    A request is taken from the buffer when the answer before it has gone to the transport, and the
    transport has room. So the bytes of answers that wait for a client are bounded. Each is taken in
    a turn of the reactor of its own, so that clients who send many at once do not hold up others.

    :ivar has_place: whether it may be kept; else it is closed after one request.
    """

    site: Site
    requests: list[StreamingRequest]
    transport: Any
    persistent: bool
    _networkProducer: Any
    _optimisticEagerReadSize = AHEAD
    totalHeadersSize = 1 << 30  # counted here, where too much can be answered with its status
    maxHeaders = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self._deaf = False
        self._head = Head()
        self.has_place = self._has_room = False
        self._ended = self._asked = False
        self._lent = 0
        self._awaits_room = self._is_blocked = False

    def connectionMade(self) -> None:
        """Begin to watch over the connection."""
        super().connectionMade()
        self.transport.bufferSize = READ
        site = self.site
        self.deadlines = Deadlines(
            self, site.limits, site.backend, site.reactor.seconds, lambda: self.is_last
        )
        self.has_place = site.take_place()
        site.channels.add(self)
        if not self.has_place:
            site.add_extra(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the request, if there is one."""
        self._deaf = True
        super().connectionLost(reason)
        self._leave_room()
        if self.has_place:
            self.site.give_back_place()
        self.site.forget(self)

    def _leave_room(self) -> None:
        if self._has_room:
            self._has_room = False
            self.site.give_back_room()

    # A client that sends nothing more

    def readConnectionLost(self) -> None:
        """Answer what has come. The client has closed its side, or all: that looks the same."""
        self._ended, self._networkProducer = True, _Ended(self.transport)
        if self._deaf:
            self.transport.loseConnection()
        elif not self._handlingRequest:
            self._end_without_request()
        elif not self.requests and not self._ahead():
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Go on: the client ends what is read from it, or a deadline does."""

    def probe(self) -> None:
        """Find out whether a client that sends nothing more is still there; called once a second.

        One that has closed all resets the connection as soon as it is sent something. An interim
        response is what can be sent before there is an answer (RFC 9110 section 15.2).
        """
        if not self._ended or not self.requests:
            return
        waiting = self.requests[0]
        if _is_reset(self.transport.getHandle()):
            self._lose_client()
        elif not self._asked and not waiting.startedWriting and waiting.clientproto == b"HTTP/1.1":
            self._asked = True
            self.send_continue()

    def _end_without_request(self) -> None:
        """Close: no request is complete, and what there is of one will not be completed."""
        for incomplete in self.requests:
            incomplete.left()
        self._deaf = True
        self.loseConnection()

    def _lose_client(self) -> None:
        self.transport.connectionLost(Failure(ConnectionDone()))

    # Writing

    def unsent(self) -> int:
        """Return how many bytes wait for the socket; TLS does not tell.

        What goes to the lent socket never waits, so it is taken off: the client has moved on.
        """
        return self._buffered() - self._lent

    def _buffered(self) -> int:
        buffered = len(getattr(self.transport, "dataBuffer", b""))
        sent = getattr(self.transport, "offset", 0)
        return int(buffered - sent + getattr(self.transport, "_tempDataLen", 0))

    def pauseProducing(self) -> None:
        """Note that the client takes nothing more for now."""
        self._is_blocked = True
        self.deadlines.block()
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Note that the client has taken what there was.

        A lent socket has room again and again, which is no progress by itself.
        """
        had_awaited, self._awaits_room, self._is_blocked = self._awaits_room, False, False
        if not had_awaited:
            self.deadlines.unblock()
        super().resumeProducing()
        if not self._is_blocked:
            self.deadlines.unblock()
        self._go_on()

    # Lending the socket (:class:`httpnas.transfer.sender.Outlet`)

    @property
    def lends_socket(self) -> bool:
        """Whether bytes go to the socket as they are."""
        return isinstance(self.transport, Connection)

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

    def dataReceived(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._deaf:
            return
        if self.deadlines.is_idle:
            self.deadlines.enter_head()
        super().dataReceived(data)
        # While it is busy, what is in the buffer has not been split into lines yet.
        if self.line_mode and not self._busyReceiving and b"\n" in self._buffer:
            self.refuse(400, "A line of the request ends in a bare line feed.")

    def lineReceived(self, line: bytes) -> None:
        """Take one line of a head."""
        if self._deaf:
            return
        try:
            if not self.requests:
                line = self._head.request_line(line)
            elif line:
                self._head.header_line(line)
            super().lineReceived(line)
        except HeadRefused as refusal:
            self.refuse(refusal.status, refusal.detail)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line that does not end."""
        refusal = line_too_long(in_headers=bool(self.requests))
        self.refuse(refusal.status, refusal.detail)

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        check_framing(header, data, self._version)
        if not super()._maybeChooseTransferDecoder(header, data):
            return False
        if header == b"Transfer-Encoding":
            self._transferDecoder = Chunks(
                self.requests[-1].handleContentChunk, self._finishRequestBody
            )
        return True

    def allHeadersReceived(self) -> None:
        """Check the head as a whole, then let the request be dispatched."""
        received = self.requests[-1]
        get = received.requestHeaders.getRawHeaders
        check_whole(get(b"Host", []), get(b"Expect", []), self._version)
        self.deadlines.enter_body(received)
        self._has_room = received.has_room = self.has_place and self.site.take_room()
        if self.length:
            self.transport.bufferSize = READ_OF_BODY
        super().allHeadersReceived()

    def checkPersistence(self, request: StreamingRequest, version: bytes) -> bool:
        """Tell whether the connection may outlive this request."""
        return is_persistent(request.requestHeaders.getRawHeaders(b"Connection", []), version)

    def rawDataReceived(self, data: bytes) -> None:
        """Take a part of a body, or what comes behind a request that is being handled."""
        try:
            super().rawDataReceived(data)
        except HeadRefused as refusal:
            self.refuse(refusal.status, refusal.detail)
        if isinstance(self._transferDecoder, Chunks):
            is_tiny = self._transferDecoder.decoded < len(data) // 2
            self.transport.bufferSize = READ_OF_TINY if is_tiny else READ_OF_BODY
        if self._handlingRequest and self._ahead() > AHEAD:
            self._networkProducer.pauseProducing()  # Twisted does not if the client takes nothing

    def _ahead(self) -> int:
        """Return how many bytes have come behind the request that is being handled."""
        return len(self._buffer) + sum(map(len, self._dataBuffer))

    def allContentReceived(self) -> None:
        """Pass on that the body is complete, unless the request was refused."""
        if not self._deaf:
            super().allContentReceived()

    # For the request

    @property
    def network(self) -> IPushProducer:
        """What is paused to read no more from the client."""
        producer: IPushProducer = self._networkProducer
        return producer

    @property
    def is_last(self) -> bool:
        """Whether it is closed after the request that it is at."""
        is_all = self._ended and not self._ahead()
        return is_all or self.site.draining or not self.has_place

    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Return method, target and version of the request whose head is complete."""
        return self._command, self._path, self._version

    def send_continue(self) -> None:
        """Tell the client to send the body (RFC 9110 section 15.2.1)."""
        self._send100Continue()

    def requestDone(self, request: StreamingRequest) -> None:
        """Go on to the next request: in a later turn of the reactor, if it is here already."""
        self.deadlines.enter_idle()
        if self.is_last:
            self.persistent = False
        if not self.persistent:
            super().requestDone(request)
            return
        self.requests.remove(request)
        self.transport.bufferSize = READ
        if self._ahead():
            self.site.reactor.callLater(0, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take the next request, unless the client has to take answers first."""
        if self.requests or self._deaf or self.deadlines.is_blocked:
            return
        self._leave_room()
        self._handlingRequest = False
        self._networkProducer.resumeProducing()
        ahead = b"".join(self._dataBuffer)
        self._dataBuffer = []
        self._asked = False
        self.setLineMode(ahead)
        if self._ended and not self._handlingRequest:
            self._end_without_request()

    # Ending

    def refuse(self, status: int, detail: str) -> None:
        """Answer a request that cannot be understood, and close.

        :param status: the status code of the answer.
        :param detail: what is wrong with the request, for the client.
        """
        if self._deaf:
            return
        identity = str(uuid.uuid4())
        started = False
        if self.requests:
            refused = self.requests[-1]
            refused.id = identity_of(refused.requestHeaders.getRawHeaders) or refused.id
            identity, started = refused.id, bool(refused.startedWriting)
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
        self.transport.writeSequence(
            [
                b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode()),
                b"X-Request-ID: %s\r\n" % identity.encode(),
                *(b"%s: %s\r\n" % field for field in self.site.application.fields),
                b"Content-Type: %s\r\n" % content_type,
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(content),
                content,
            ]
        )

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(400, "The request is not HTTP as RFC 9112 has it.")

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
        self._networkProducer.unregisterProducer()
        half_close = getattr(self.transport, "loseWriteConnection", None)
        if half_close is None:
            self.transport.loseConnection()
        else:
            self._networkProducer.resumeProducing()
            half_close()

    def close(self) -> None:
        """Close, after what was written has gone out or the time to linger is over."""
        self._deaf = True
        self.deadlines.enter_linger()
        self.loseConnection()

    def abort(self) -> None:
        """Cut the connection at once, whatever was written."""
        self.transport.abortConnection()

    def cut_off_slow_client(self) -> None:
        """Cut the connection of a client that does not take what is sent to it."""
        for under_way in self.requests:
            under_way.ending = Ending.CLIENT_TOO_SLOW
        self.abort()


def _is_reset(peer: socket.socket) -> bool:
    """Return whether *peer* has closed both sides (poll(2))."""
    looking = select.poll()
    looking.register(peer, 0)
    return bool(looking.poll(0))
