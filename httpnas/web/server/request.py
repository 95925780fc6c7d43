"""One request and its answer. The request is dispatched when its head is complete.

The head of an answer goes to the connection together with the first bytes behind it, as one write.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from httpnas.fields.names import path_of
from httpnas.web.server.application import Application, Backend, GivenUp
from httpnas.web.server.body import Body, BodyCutShort, BodyTooSlow
from httpnas.web.server.handlers import Handlers
from httpnas.web.server.head import Head, identity_of, new_identity

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
#: Answers that never have a body (RFC 9110 section 6.4.1).
_WITHOUT_BODY = (204, 304)
_STATUS_LINES = {
    (version, status.value): b"%b %d %b\r\n" % (version, status, status.phrase.encode())
    for version in (b"HTTP/1.0", b"HTTP/1.1")
    for status in HTTPStatus
}


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
    route: Callable[[Any], None]

    @property
    def date(self) -> bytes:
        """The value of Date."""

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
    client: Any
    has_share: bool
    lends_socket: bool
    is_secure: bool

    @property
    def site(self) -> Site:
        """What it belongs to."""

    @property
    def network(self) -> IPushProducer:
        """What is paused to read no more from the client."""

    @property
    def certificate(self) -> bytes | None:
        """The certificate of the client, in DER, which has been verified."""

    @property
    def is_last(self) -> bool:
        """Whether it is closed after the request that it is at."""

    def send_continue(self) -> None:
        """Tell the client to send the body."""

    def borrow(self) -> int | None:
        """Return the descriptor of the socket, None while bytes wait for it."""

    def sent(self, count: int) -> None:
        """Note that the lent socket has taken *count* bytes."""

    def await_room(self) -> None:
        """Resume the producer once the socket takes more."""

    def write(self, *pieces: bytes) -> None:
        """Send *pieces*, one after the other, as one write."""

    def write_head(self, *pieces: bytes) -> None:
        """Send the head of an answer and what comes with it."""

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let *producer* send, and pause it when the client takes nothing."""

    def unregisterProducer(self) -> None:
        """Note that the producer has sent everything."""

    def requestDone(self, request: Any) -> None:
        """Go on to the next request."""

    def begin_drain(self) -> None:
        """Begin to wait for the end of a body that nobody wants."""

    def linger(self) -> None:
        """Close for writing, and wait for the client to close."""

    def abort(self) -> None:
        """Cut the connection."""


@implementer(IConsumer)
class StreamingRequest:
    """A request that is dispatched when its head is complete.

    :ivar body: its :class:`Body`.
    :ivar id: what it is called in logs and answers.
    :ivar began: when it began, in seconds of the reactor's clock.
    :ivar first_byte: when its answer began, by the same clock; None before that.
    :ivar query: what stands behind the question mark of its target.
    :ivar client: the address it came from.
    :ivar is_secure: whether it came through TLS.
    :ivar code: the status code of its answer.
    :ivar sentLength: bytes of the content of its answer that were sent, or wait for the socket.
    :ivar startedWriting: whether its answer has begun, and :attr:`finished`, whether it has ended.
    :ivar has_room: whether there are memory and descriptors for more than a short answer.
    :ivar has_share: whether its client may have the connection that it came by.
    :ivar given_up: whether its client was told to come again, as the backend does not answer.
    :ivar ending: how it ended.
    """

    _log = Logger()
    code = 200
    sentLength = 0
    startedWriting = finished = False
    has_room = given_up = False
    ending = Ending.ANSWERED
    producer: IPushProducer | None = None
    first_byte: float | None = None
    _is_chunked = _has_no_body = _is_lost = _runs = False
    _then: Callable[[], object] | None = None
    _handled: Deferred[Any] | None = None
    _drained_from = 0

    def __init__(self, channel: Connection, head: Head, length: int | None = 0) -> None:
        self.channel: Connection | None = channel
        self.site = channel.site
        self.client = channel.client
        self.is_secure = channel.is_secure
        self.has_share = channel.has_share
        self.head = head
        self.method = head.method
        self.path, self.query = path_of(head.target), head.target.partition(b"?")[2]
        self.id = identity_of(head.lines) or new_identity()
        self.began = self.site.reactor.seconds()
        self.body = Body(length, channel.network, self._invite)
        self._expects = head.expects and length != 0
        self._fields: dict[bytes, bytes] = {}

    @property
    def gone(self) -> bool:
        """Whether there is nobody left to answer."""
        return self._is_lost or self.channel is None or self.ending is Ending.REFUSED

    @property
    def why_gone(self) -> Ending:
        """How the request ended when its client did not get all of the answer."""
        return Ending.CLIENT_GONE if self.ending is Ending.ANSWERED else self.ending

    @property
    def answered(self) -> bool:
        """Whether an answer has begun."""
        return self.startedWriting or self.ending is Ending.REFUSED

    # Called by the channel

    def _invite(self) -> None:
        if self._expects and self.channel is not None:
            self._expects = False
            self.channel.send_continue()

    def data_received(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self.body.data_received(data)
        if self.finished and self.body.received - self._drained_from > DRAINED:
            self._linger()

    def content_received(self) -> None:
        """Note that the body is complete."""
        answered = self.finished  # whoever gets the end of the body may answer at once
        self.body.end()
        if answered:
            self._let_go()

    def refused(self, status: int) -> None:
        """Note that the channel has answered in this request's stead."""
        if not self.startedWriting:
            self.code = status
        self.ending = Ending.REFUSED
        self._cut_short()

    def left(self) -> None:
        """Note that the client will neither complete the request nor take an answer."""
        self.ending = self.why_gone
        self._is_lost = True
        self._cut_short()
        self.channel = None
        if self._handled is not None:
            self._handled.cancel()

    def at_its_end(self, then: Callable[[], object]) -> None:
        """Call *then* when no handler runs for this request any more, which may be at once."""
        if self._runs:
            self._then = then
        else:
            then()

    def _cut_short(self) -> None:
        if not self.finished:
            self.finished = True
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
        self.setHeader(b"Server", b"httpnas")
        self.setHeader(b"Date", self.site.date)
        self.setHeader(b"X-Request-ID", self.id.encode())
        self._fields.update(self.site.application.fields)
        if self.path == b"*":
            self._answer_star()
            return
        try:
            self.site.route(self)
        except Exception:
            self._log.failure("request {id} failed", id=self.id)
            self._refuse(500, "The server failed to answer; its log says why.")

    def handle(self, handler: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        """Run *handler* to its end, whatever happens to this request.

        :return: fires with its result; cancelling it lets go of the result, nothing else.
        :raises GivenUp: through the Deferred, when the backend does not answer for too long.
        """
        self._runs = True
        self._handled = self.site.handlers.run(handler, self._ran)
        return self._handled

    def _ran(self) -> None:
        self._runs = False
        if self._then is not None:
            self._then()

    def _answer_star(self) -> None:
        """Answer for the server as a whole (RFC 9110 section 9.3.7)."""
        if self.method == b"OPTIONS":
            self.setHeader(b"Content-Length", b"0")
            self.finish()
        else:
            self._refuse(405, "The only request for * is OPTIONS.", (b"Allow", b"OPTIONS"))

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
            self._fields.pop(stale, None)
        self._fields.update(self.site.application.fields)
        for name, value in fields:
            self.setHeader(name, value)
        self.setResponseCode(status)
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Content-Length", b"%d" % len(content))
        self.write(content)
        self.finish()

    def field_lines(self, name: bytes) -> Sequence[bytes]:
        """Return the values of all field lines called *name*."""
        return self.head.lines(name.lower())

    def getHeader(self, name: bytes) -> bytes | None:
        """Return the value of the last field line called *name*."""
        lines = self.head.lines(name.lower())
        return lines[-1] if lines else None

    def setResponseCode(self, status: int) -> None:
        """Set the status of the answer."""
        self.code = status

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Set the field *name* of the answer, which is always spelled in the same way."""
        if b"\n" in value or b"\r" in value:
            raise ValueError("a field of an answer is one line")
        self._fields[name] = value

    def setHeaders(self, fields: Mapping[bytes, bytes]) -> None:
        """Set several fields of the answer, whose values are ours."""
        self._fields.update(fields)

    def vary(self, name: bytes) -> None:
        """Note that the answer depends on the field *name* of the request."""
        before = self._fields.get(b"Vary")
        self.setHeader(b"Vary", name if before is None else before + b", " + name)

    def write(self, data: bytes) -> None:
        """Send *data*, and before it the head of the answer if it is the first."""
        channel = self.channel
        if channel is None or self.gone:
            return
        head = () if self.startedWriting else (self._begin(channel),)
        content: tuple[bytes, ...] = ()
        if data and not self._has_no_body:
            self.sentLength += len(data)
            content = (b"%x\r\n" % len(data), data, b"\r\n") if self._is_chunked else (data,)
        if head:
            channel.write_head(*head, *content)
        elif content:
            channel.write(*content)

    def _begin(self, channel: Connection) -> bytes:
        """Return the head of the answer, which decides how its body is framed."""
        self.startedWriting = True
        self.first_byte = self.site.reactor.seconds()
        version = self.head.version
        self._has_no_body = self.method == b"HEAD" or self.code in _WITHOUT_BODY
        if not self._has_no_body and b"Content-Length" not in self._fields:
            if version == b"HTTP/1.1":
                self._is_chunked = True
                self.setHeader(b"Transfer-Encoding", b"chunked")
            else:
                channel.persistent = False
        if self._closes_early() or channel.is_last:
            channel.persistent = False
        if not channel.persistent:
            self.setHeader(b"Connection", b"close")
        elif version == b"HTTP/1.0":
            self.setHeader(b"Connection", b"keep-alive")
        fields = [b"%b: %b\r\n" % field for field in self._fields.items()]
        return b"".join((_STATUS_LINES[version, self.code], *fields, b"\r\n"))

    def _closes_early(self) -> bool:
        """Tell whether this answer comes so early that the connection cannot outlive it."""
        if self.body.ended:
            return False
        left = (self.body.length or 0) - self.body.received
        return self._expects or left > DRAINED or isinstance(self.body.failure, BodyTooSlow)

    @property
    def lends_socket(self) -> bool:
        """Whether a sender may give the content to the socket itself."""
        is_framed = b"Content-Length" not in self._fields
        return self.channel is not None and self.channel.lends_socket and not is_framed

    @property
    def certificate(self) -> bytes | None:
        """The certificate of its client, in DER, which has been verified; None without one."""
        return None if self.channel is None else self.channel.certificate

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

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let *producer*, a push producer, send the content."""
        self.producer = producer
        if self.channel is not None:
            self.channel.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Note that the producer has sent everything."""
        self.producer = None
        if self.channel is not None:
            self.channel.unregisterProducer()

    def finish(self) -> None:
        """End the answer. The connection goes on once the body has ended as well."""
        channel = self.channel
        if channel is None or self.gone or self.finished:
            return
        closes = self._closes_early()
        self.write(b"")
        if self._is_chunked:
            channel.write(b"0\r\n\r\n")
        self.site.log(self)
        self.finished = True
        if self.body.ended:
            self._let_go()
            return
        self._drained_from = self.body.received
        self.body.drop()
        if closes:
            channel.linger()
        else:
            channel.begin_drain()

    def _let_go(self) -> None:
        """Let the connection go on."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.requestDone(self)

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
