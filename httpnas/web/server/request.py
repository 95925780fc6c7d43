"""One request and its answer. The request is dispatched when its head is complete."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine, Iterable, Iterator
from enum import Enum
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import NO_BODY_CODES
from twisted.web.iweb import INonQueuedRequestFactory
from zope.interface import directlyProvides, provider

from httpnas.fields.names import path_of
from httpnas.web.server.application import Application, Backend, GivenUp
from httpnas.web.server.body import Body, BodyCutShort, BodyTooSlow
from httpnas.web.server.handlers import Handlers
from httpnas.web.server.head import identity_of

#: Bytes of a body that are read and dropped after an early answer to keep the connection.
DRAINED = 256 << 10

#: Fields that describe the content of a file, and are wrong for a refusal.
_OF_THE_CONTENT = (
    b"ETag",
    b"Last-Modified",
    b"Content-Range",
    b"Content-Disposition",
    b"Repr-Digest",
)


class Ending(Enum):
    """How a request ended. The values are the words of the log and of ``/transfers``."""

    ANSWERED = "answered"
    REFUSED = "refused"
    CLIENT_GONE = "client gone"
    CLIENT_TOO_SLOW = "client too slow"
    FAILED = "failed"


class Site(Protocol):
    """The site of a request."""

    reactor: IReactorTime
    application: Application
    backend: Backend
    handlers: Handlers
    draining: bool

    @property
    def connections(self) -> int:
        """How many connections are open."""

    def running(self) -> Iterator[Any]:
        """Yield the requests that have come and not ended, of the site's own class."""

    def log(self, request: StreamingRequest) -> None:
        """Note that *request* has ended."""


class Connection(Protocol):
    """The connection of a request."""

    persistent: bool
    site: Site

    @property
    def network(self) -> IPushProducer:
        """What is paused to read no more from the client."""

    @property
    def is_last(self) -> bool:
        """Whether it is closed after the request that it is at."""

    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Return method, target and version of the request whose head is complete."""

    def send_continue(self) -> None:
        """Tell the client to send the body."""

    @property
    def lends_socket(self) -> bool:
        """Whether bytes go to the socket as they are."""

    def borrow(self) -> int | None:
        """Return the descriptor of the socket, None while bytes wait for it."""

    def sent(self, count: int) -> None:
        """Note that the lent socket has taken *count* bytes."""

    def await_room(self) -> None:
        """Resume the producer once the socket takes more."""

    def begin_drain(self) -> None:
        """Begin to wait for the end of a body that nobody wants."""

    def linger(self) -> None:
        """Close for writing, and wait for the client to close."""

    def abort(self) -> None:
        """Cut the connection."""


@provider(INonQueuedRequestFactory)
class StreamingRequest(server.Request):
    """A request that is dispatched when its head is complete.

    :ivar body: its :class:`Body`.
    :ivar id: what it is called in logs and answers.
    :ivar began: when it began, in seconds of the reactor's clock.
    :ivar first_byte: when its answer began, by the same clock; None before that.
    :ivar query: what stands behind the question mark of its target.
    :ivar has_room: whether there are memory and descriptors for more than a short answer.
    :ivar given_up: whether its client was told to come again, as the backend does not answer.
    :ivar ending: how it ended.
    """

    defaultContentType = None
    # Twisted deletes the instance's own when the request is done.
    channel: Connection | None = None  # type: ignore[assignment]
    site: Site  # type: ignore[assignment]
    body: Body
    has_room = False
    given_up = False
    ending = Ending.ANSWERED
    _handled: Deferred[Any] | None = None
    _drained_from = 0

    def __init_subclass__(cls) -> None:
        directlyProvides(cls, INonQueuedRequestFactory)  # what a class provides is not inherited

    def __init__(self, channel: Connection, **kwargs: Any) -> None:
        super().__init__(channel, **kwargs)
        self.site = channel.site
        self.id = str(uuid.uuid4())
        self.began = self.site.reactor.seconds()
        self.first_byte: float | None = None
        self.path = self.query = b""
        self._expects = False
        self.body = Body(0, channel.network, self._invite)

    @property
    def gone(self) -> bool:
        """Whether there is nobody left to answer."""
        return bool(self._disconnected) or self.channel is None or self.ending is Ending.REFUSED

    @property
    def why_gone(self) -> Ending:
        """How the request ended when its client did not get all of the answer."""
        return Ending.CLIENT_GONE if self.ending is Ending.ANSWERED else self.ending

    @property
    def answered(self) -> bool:
        """Whether an answer has begun."""
        return bool(self.startedWriting) or self.ending is Ending.REFUSED

    # Called by the channel

    def gotLength(self, length: int | None) -> None:
        """Dispatch a request with a body; one without is complete in a moment anyway."""
        channel = self.channel
        assert channel is not None
        self.method, self.uri, self.clientproto = channel.request_line()
        self.path, self.query = path_of(self.uri), self.uri.partition(b"?")[2]
        self.args = {}
        self.id = identity_of(self.requestHeaders.getRawHeaders) or self.id
        self._expects = self.requestHeaders.hasHeader(b"Expect") and self.clientproto == b"HTTP/1.1"
        # Else the channel answers 100 by itself, right after this, even behind a final status.
        self.requestHeaders.removeHeader(b"Expect")
        self.body = Body(length, channel.network, self._invite)
        if length != 0:
            self.process()

    def _invite(self) -> None:
        if self._expects and self.channel is not None:
            self._expects = False
            self.channel.send_continue()

    def handleContentChunk(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self.body.data_received(data)
        if self.finished and self.body.received - self._drained_from > DRAINED:
            self._linger()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Note that the body is complete."""
        answered = bool(self.finished)  # whoever gets the end of the body may answer at once
        self.body.end()
        if self.body.length == 0:
            self.process()
        elif answered:
            self._cleanup()

    def refused(self, status: int) -> None:
        """Note that the channel has answered in this request's stead."""
        if not self.startedWriting:
            self.code = status
        self.ending = Ending.REFUSED
        self._cut_short()

    def connectionLost(self, reason: Failure) -> None:
        """Fail whatever waits for the client."""
        self.left()
        super().connectionLost(reason)

    def left(self) -> None:
        """Note that the client will neither complete the request nor take an answer."""
        self.ending = self.why_gone
        self._cut_short()

    def _cut_short(self) -> None:
        if not self.finished:
            self.finished = 1
            self.site.log(self)
        if not self.body.ended:
            self.body.fail(BodyCutShort("the body was cut short"))
        if self.producer is not None:
            self.producer.stopProducing()

    def give_up(self) -> None:
        """Fail what the route waits for, as the backend does not answer; the handler runs on."""
        if self._handled is None or self._handled.called:
            return
        self.given_up = True
        reason = GivenUp("the backend does not answer")
        if not self.body.ended:
            self.body.fail(reason)
        if not self._handled.called:
            self._handled.errback(Failure(reason))

    # Called by the routing

    def process(self) -> None:
        """Hand the request to its route."""
        self.setHeader(b"X-Request-ID", self.id.encode())
        self._set_headers(self.site.application.fields)
        super().process()

    def _set_headers(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in fields:
            self.setHeader(name, value)

    def handle(self, handler: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        """Run *handler* to its end, whatever happens to this request.

        :return: fires with its result; cancelling it lets go of the result, nothing else.
        :raises GivenUp: through the Deferred, when the backend does not answer for too long.
        """
        self._handled = self.site.handlers.run(handler)
        return self._handled

    def _handleStar(self) -> None:
        if self.method == b"OPTIONS":
            super()._handleStar()
        else:
            self._refuse(405, "The only request for * is OPTIONS.", (b"Allow", b"OPTIONS"))

    def getRequestHostname(self) -> bytes:
        """Return a constant: no route depends on the host, and some hosts upset the router."""
        return b"localhost"

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer 500 and log *reason*: an error of ours that no route has caught."""
        self._log.failure("request {id} failed", reason, id=self.id)
        self._refuse(500, "The server failed to answer; its log says why.")
        return reason

    def _refuse(self, status: int, detail: str, *fields: tuple[bytes, bytes]) -> None:
        content_type, content = self.site.application.refusal(status, detail, self.id)
        self.refuse(status, content_type, content, *fields)

    # Called by handlers

    def refuse(
        self, status: int, content_type: bytes, content: bytes, *fields: tuple[bytes, bytes]
    ) -> None:
        """Answer with an error, or cut the answer off when one has begun.

        :param fields: more fields of the answer.
        """
        if self.gone or self.finished:
            return
        if self.startedWriting:
            self.abort(Ending.FAILED)
            return
        for stale in _OF_THE_CONTENT:
            self.responseHeaders.removeHeader(stale)
        self._set_headers(self.site.application.fields)
        self._set_headers(fields)
        self.setResponseCode(status, HTTPStatus(status).phrase.encode())
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Content-Length", b"%d" % len(content))
        self.write(content)
        self.finish()

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Set the field *name* of the answer."""
        super().setHeader(name, value)

    def write(self, data: bytes) -> None:
        """Send *data*, and before it the head of the answer if it is the first."""
        if not self.startedWriting and self.channel is not None:
            self.first_byte = self.site.reactor.seconds()
            self.setHeader(b"Server", b"httpnas")  # Twisted's tells versions
            if self._closes_early() or self._ends_by_closing() or self.channel.is_last:
                self.channel.persistent = False
            if not self.channel.persistent:
                self.setHeader(b"Connection", b"close")
            elif self.clientproto == b"HTTP/1.0":
                self.setHeader(b"Connection", b"keep-alive")
        super().write(data)

    def _ends_by_closing(self) -> bool:
        """Tell whether nothing else says where the answer ends: HTTP/1.0 has no chunked bodies."""
        return (
            self.clientproto == b"HTTP/1.0"
            and self.method != b"HEAD"
            and self.code not in NO_BODY_CODES
            and not self.responseHeaders.hasHeader(b"Content-Length")
        )

    def _closes_early(self) -> bool:
        """Tell whether this answer comes so early that the connection cannot outlive it."""
        if self.body.ended:
            return False
        left = (self.body.length or 0) - self.body.received
        return self._expects or left > DRAINED or isinstance(self.body.failure, BodyTooSlow)

    @property
    def lends_socket(self) -> bool:
        """Whether a sender may give the content to the socket itself."""
        channel, is_framed = self.channel, not self.responseHeaders.hasHeader(b"Content-Length")
        return channel is not None and channel.lends_socket and not is_framed

    def borrow(self) -> int | None:
        """Return the descriptor of the socket, None while earlier bytes wait for it."""
        if not self.startedWriting:
            self.write(b"")
        return self.channel.borrow() if self.channel is not None else None

    def sent(self, count: int) -> None:
        """Note that the socket has taken *count* bytes of the content."""
        self.sentLength += count
        if self.channel is not None:
            self.channel.sent(count)

    def await_room(self) -> None:
        """Resume the producer once the socket takes more."""
        if self.channel is not None:
            self.channel.await_room()

    def finish(self) -> None:
        """End the answer. The connection goes on once the body has ended as well."""
        if self.gone or self.finished:
            return
        if self.body.ended:
            super().finish()
            return
        # A "queued" request writes everything and leaves the clean-up, which lets the channel
        # parse the next request, to whoever has queued it.
        closes, self.queued = self._closes_early(), True
        super().finish()
        self._drained_from = self.body.received
        self.body.drop()
        if closes:
            self._linger()
        elif self.channel is not None:
            self.channel.begin_drain()

    def _linger(self) -> None:
        if self.channel is not None:
            self.channel.linger()

    def abort(self, ending: Ending) -> None:
        """Cut the connection: the client must see that the answer is not whole.

        :param ending: why, for the log.
        """
        if not self.gone and self.channel is not None:
            self.ending = ending
            self._cut_short()
            self.channel.abort()
