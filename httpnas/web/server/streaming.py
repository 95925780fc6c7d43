"""HTTP/1.1 requests whose bodies stream: the one module that touches ``twisted.web``'s insides.

Twisted collects a whole body before anybody sees the request. Here a request is dispatched when
its *headers* are complete (:meth:`StreamingRequest.gotLength`, the first hook that is called
then), and its body is a push producer that the handler connects to whatever consumes it::

    admit from the headers -> await body.deliver_to(consumer) -> commit -> answer

What follows from that, and is held together here:

- The body is asked for (``100 Continue``) when a handler wants it and not before, and what
  arrives earlier is held up to a bound, at which reading from the socket pauses.
- A handler may answer before the body has ended. The answer is written at once, but the request
  stays at the head of its connection until the rest of the body has been read and dropped; when
  that is too much, the connection *lingers*: closed for writing, read for a while, then ended,
  so that the client can read the answer (RFC 9112 section 9.6).
- A handler is never cancelled between two steps on disk. When the client vanishes, what waits
  for the network (a body, a download) fails, and the handler cleans up like after any failure.
- Twisted's idle timer is replaced by a look at every connection once a second, for deadlines
  that a byte now and then does not extend.

Nothing here knows of storage or doors. For HTTP/2, a channel of its own would give
:class:`~httpnas.web.server.body.Body` its stream's window to pause, and dispatch at the first body
chunk; until that is built only HTTP/1.1 is offered.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.iweb import INonQueuedRequestFactory
from twisted.web.resource import IResource
from zope.interface import directlyProvides, provider

from httpnas.fields.names import path_of
from httpnas.transfer.sender import ConsumerGone
from httpnas.web import problems
from httpnas.web.problems import Problem
from httpnas.web.server.body import Body, BodyCutShort, BodyTooSlow
from httpnas.web.server.head import (
    Head,
    HeadRefused,
    check_field_line,
    check_framing,
    check_whole,
    identity_of,
    is_persistent,
    line_too_long,
)

#: Bytes read from a socket at a time: four times Twisted's own, and uploads a fifth faster.
READ = 256 << 10
#: Bytes of a body that are read and dropped after an early answer to keep the connection.
DRAINED = 256 << 10
#: Bytes that must move in ``Limits.stall`` seconds.
PROGRESS = 64 << 10


class Backing(Protocol):
    """What handlers wait for when it is not their client."""

    @property
    def away(self) -> bool:
        """Whether nothing is to be had of it just now."""

    @property
    def hang_timeout(self) -> float:
        """For how many seconds a request may wait for it without a byte being moved."""

    @property
    def now(self) -> float:
        """The time by which that is measured, in seconds."""

    def tick(self) -> None:
        """Look after it; called once a second."""


class Limits:
    """How long what may take, in seconds.

    :param stall: for :data:`PROGRESS` bytes of a body or a download to move.
    :param headers: for the headers of a request, from its first byte.
    :param idle: for a connection without a request.
    :param linger: for a client to read an answer and hang up, or to end a refused body.
    """

    def __init__(
        self, stall: float = 300, headers: float = 30, idle: float = 60, linger: float = 5
    ) -> None:
        self.stall = stall
        self.headers = headers
        self.idle = idle
        self.linger = linger


@provider(INonQueuedRequestFactory)
class StreamingRequest(server.Request):
    """A request that is dispatched when its headers are complete.

    :ivar body: its :class:`Body`.
    :ivar id: what it is called in logs and answers.
    :ivar began: when, by the reactor's clock; and :attr:`first_byte`, when it began to be
        answered.
    :ivar query: what stands behind the question mark of its target.
    :ivar handled: fires when its handler has ended, or is not waited for any more.
    :ivar given_up: whether its client was told to come again, as the storage does not answer.
    :ivar ended_by: how it ended, for the log.
    """

    defaultContentType = None
    # Twisted deletes the instance's own when the request is done.
    channel: StreamingChannel | None = None  # type: ignore[assignment]
    site: StreamingSite
    body: Body
    given_up = False
    handled: Deferred[Any] | None = None
    ended_by = "answered"

    def __init_subclass__(cls) -> None:
        directlyProvides(cls, INonQueuedRequestFactory)  # what a class provides is not inherited

    def __init__(self, channel: StreamingChannel, **kwargs: Any) -> None:
        super().__init__(channel, **kwargs)
        self.site = channel.site
        self.id = str(uuid.uuid4())
        self.began = self.site.reactor.seconds()
        self.first_byte: float | None = None
        self.path = self.query = b""
        self._expects = False
        self.body = Body(0, channel, self._invite)

    @property
    def gone(self) -> bool:
        """Whether there is nobody left to answer."""
        return bool(self._disconnected) or self.channel is None or self.ended_by == "refused"

    @property
    def answered(self) -> bool:
        """Whether an answer has begun."""
        return bool(self.startedWriting) or self.ended_by == "refused"

    # Called by the channel

    def gotLength(self, length: int | None) -> None:
        """Dispatch a request with a body; one without is complete in a moment anyway."""
        channel = self.channel
        assert channel is not None
        self.method, self.uri = channel._command, channel._path
        self.clientproto = channel._version
        self.path, self.query = path_of(self.uri), self.uri.partition(b"?")[2]
        self.args = {}
        self.id = identity_of(self.requestHeaders.getRawHeaders) or self.id
        self._expects = self.requestHeaders.hasHeader(b"Expect") and self.clientproto == b"HTTP/1.1"
        # Else the channel answers 100 by itself, right after this, even behind a final status.
        self.requestHeaders.removeHeader(b"Expect")
        self.body = Body(length, channel._networkProducer, self._invite)
        if length != 0:
            self.process()

    def _invite(self) -> None:
        if self._expects and self.channel is not None:
            self._expects = False
            self.channel._send100Continue()

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
        self.ended_by = "refused"
        self._give_up()

    def connectionLost(self, reason: Failure) -> None:
        """Fail whatever waits for the client."""
        if self.ended_by == "answered":
            self.ended_by = "client gone"
        self._give_up()
        super().connectionLost(reason)

    def _give_up(self) -> None:
        if not self.finished:
            self.finished = 1
            self.site.log(self)
        if not self.body.ended:
            self.body.fail(BodyCutShort("the body was cut short"))
        if self.producer is not None:
            self.producer.stopProducing()

    # Called by the routing

    def process(self) -> None:
        """Hand the request to its route."""
        self.setHeader(b"X-Request-ID", self.id.encode())
        super().process()

    def _handleStar(self) -> None:
        if self.method == b"OPTIONS":
            super()._handleStar()
        else:
            problems.answer(
                self, Problem(405, "The only request for * is OPTIONS.", Allow="OPTIONS")
            )

    def getRequestHostname(self) -> bytes:
        """Return a constant: no route depends on the host, and some hosts upset the router."""
        return b"localhost"

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer 500 and log *reason*: an error of ours that no route has caught."""
        self._log.failure("request {id} failed", reason, id=self.id)
        problems.answer(self, Problem(500, "The server failed to answer; its log says why."))
        return reason

    # Called by handlers

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Set the header *name* of the answer."""
        super().setHeader(name, value)

    def write(self, data: bytes) -> None:
        """Send *data*, and before it the headers if it is the first."""
        if not self.startedWriting and self.channel is not None:
            self.first_byte = self.site.reactor.seconds()
            if self._closes_early() or self.site.draining:
                self.channel.persistent = False
            if not self.channel.persistent:
                self.setHeader(b"Connection", b"close")
        super().write(data)

    def _closes_early(self) -> bool:
        """Whether this answer comes so early that the connection can not outlive it."""
        if self.body.ended:
            return False
        left = (self.body.length or 0) - self.body.received
        return self._expects or left > DRAINED or isinstance(self.body.failure, BodyTooSlow)

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

    _drained_from = 0

    def _linger(self) -> None:
        if self.channel is not None:
            self.channel.linger()

    def tell_to_come_again(self) -> None:
        """Give the request up, whose handler may end whenever it can."""
        if self.handled is None or self.handled.called:
            return
        self.given_up = True
        problem = problems.busy("The storage does not answer. Try again soon.")
        if not self.body.ended:
            self.body.fail(problem)
        if not self.handled.called:
            self.handled.errback(Failure(problem))

    def abort(self, why: str) -> None:
        """Cut the connection: the client must see that the answer is not whole.

        :param why: for the log.
        """
        if not self.gone and self.channel is not None:
            self.ended_by = why
            self._give_up()
            self.channel.transport.abortConnection()


class StreamingChannel(http.HTTPChannel):
    """One connection: stricter than Twisted's in what it takes, and with deadlines of its own."""

    site: StreamingSite
    requests: list[StreamingRequest]
    transport: Any
    _networkProducer: Any
    totalHeadersSize = 1 << 30  # counted here, where too much can be answered with its status
    maxHeaders = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self._deaf = False
        self._head = Head()
        self._phase: Callable[[float], None] = self._check_idle
        self._since = 0.0
        self._seen = 0
        self._moved = (0, 0.0)
        self._blocked_since: float | None = None
        self._blocked_at = 0

    def connectionMade(self) -> None:
        """Begin to watch over the connection."""
        super().connectionMade()
        self.transport.bufferSize = READ
        self.site.channels.add(self)
        self._enter(self._check_idle)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the request, if there is one."""
        super().connectionLost(reason)
        self.site.forget(self)

    # Deadlines

    def _enter(self, phase: Callable[[float], None]) -> None:
        self._phase = phase
        self._since = self.site.reactor.seconds()

    def check(self, now: float) -> None:
        """End what has taken too long at the time *now*, in seconds."""
        if self._blocked_since is not None and self._blocked_at - self._pending() >= PROGRESS:
            self._note_blocked()
        blocked = self._blocked_since
        if blocked is not None and now - blocked > self.site.limits.stall:
            for request in self.requests:
                request.ended_by = "client too slow"
            self.transport.abortConnection()
        else:
            self._phase(now - self._since)

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._phase == self._check_idle

    def _check_idle(self, age: float) -> None:
        limits = self.site.limits
        if age > (limits.linger if self.site.draining else limits.idle):
            self.close()

    def _check_headers(self, age: float) -> None:
        if age > self.site.limits.headers:
            self.refuse(408, "The headers of the request did not arrive in time.")

    def _check_body(self, age: float) -> None:
        request = self.requests[0]
        body = request.body
        waits_for_us = request._expects or body.paused or body.ended or body.is_unclaimed
        if waits_for_us or body.received - self._seen >= PROGRESS:
            self._seen = body.received
            self._enter(self._check_body)
        elif age > self.site.limits.stall:
            body.fail(BodyTooSlow())
        self._check_handler(request, waits_for_us and self._blocked_since is None)

    def _check_handler(self, request: StreamingRequest, is_awaited: bool) -> None:
        """Give up a request for which nothing has moved for too long though its client is ready."""
        moved, now = request.body.received + request.sentLength, self.site.backing.now
        if not is_awaited or moved != self._moved[0]:
            self._moved = (moved, now)
        elif now - self._moved[1] > self.site.backing.hang_timeout and not request.finished:
            request.tell_to_come_again()

    def _check_drain(self, age: float) -> None:
        if age > self.site.limits.linger:
            self.linger()

    def _check_linger(self, age: float) -> None:
        if age > self.site.limits.linger:
            self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Note that the client takes nothing more just now."""
        self._note_blocked()
        super().pauseProducing()

    def _note_blocked(self) -> None:
        self._blocked_since, self._blocked_at = self.site.reactor.seconds(), self._pending()

    def _pending(self) -> int:
        """Return how many bytes wait for the socket; TLS does not tell."""
        buffered = len(getattr(self.transport, "dataBuffer", b""))
        sent = getattr(self.transport, "offset", 0)
        return int(buffered - sent + getattr(self.transport, "_tempDataLen", 0))

    def resumeProducing(self) -> None:
        """Note that the client has taken what there was."""
        self._blocked_since = None
        super().resumeProducing()

    # Reading

    def dataReceived(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._deaf:
            return
        if self.idle:
            self._enter(self._check_headers)
        super().dataReceived(data)
        # While it is busy, what is in the buffer has not been split into lines yet.
        if self.line_mode and not self._busyReceiving and b"\n" in self._buffer:
            self.refuse(400, "A line of the request ends in a bare line feed.")

    def lineReceived(self, line: bytes) -> None:
        """Take one line of the request's head."""
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
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def allHeadersReceived(self) -> None:
        """Check the headers as a whole, then let the request be dispatched."""
        get = self.requests[-1].requestHeaders.getRawHeaders
        check_whole(get(b"Host", []), get(b"Expect", []), self._version)
        self._seen, self._moved = 0, (0, self.site.backing.now)
        self._enter(self._check_body)
        super().allHeadersReceived()

    def checkPersistence(self, request: StreamingRequest, version: bytes) -> bool:
        """Tell whether the connection may outlive this request."""
        return is_persistent(request.requestHeaders.getRawHeaders(b"Connection", []), version)

    def _finishRequestBody(self, data: bytes) -> None:
        try:
            for line in getattr(self._transferDecoder, "_trailerHeaders", ()):
                check_field_line(line)
        except HeadRefused as refusal:
            self.refuse(refusal.status, refusal.detail)
        else:
            super()._finishRequestBody(data)

    def allContentReceived(self) -> None:
        """Pass on that the body is complete, unless the request was refused."""
        if not self._deaf:
            super().allContentReceived()

    def requestDone(self, request: StreamingRequest) -> None:
        """Go on to the next request."""
        self._enter(self._check_idle)
        if self.site.draining:
            self.persistent = False
        super().requestDone(request)

    # Ending

    def refuse(self, status: int, detail: str) -> None:
        """Answer a request that can not be understood, and close."""
        if self._deaf:
            return
        identity = str(uuid.uuid4())
        started = False
        if self.requests:
            request = self.requests[-1]
            request.id = identity_of(request.requestHeaders.getRawHeaders) or request.id
            identity, started = request.id, bool(request.startedWriting)
            request.refused(status)
        else:
            self._log.info(
                "refused {id} with {status}: {detail}", id=identity, status=status, detail=detail
            )
        if not started:
            body = problems.document(Problem(status, detail), identity)
            self.transport.writeSequence(
                [
                    b"HTTP/1.1 %d %s\r\n" % (status, problems.phrase(status)),
                    b"X-Request-ID: %s\r\n" % identity.encode(),
                    b"Content-Type: application/problem+json\r\n",
                    b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body),
                    body,
                ]
            )
        self.linger()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(400, "The request is not HTTP as RFC 9112 has it.")

    def begin_drain(self) -> None:
        """Begin to wait for the end of a body that nobody wants."""
        self._enter(self._check_drain)

    def linger(self) -> None:
        """Close for writing, and let the client read what was written before all is closed."""
        if self._deaf:
            return
        self._deaf = True
        self._enter(self._check_linger)
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
        self._enter(self._check_linger)
        self.loseConnection()


class StreamingSite(server.Site):
    """The factory of :class:`StreamingChannel`, and the watch over its connections.

    :param resource: answers every request.
    :param request_class: what requests are made of.
    :param reactor: tells the time.
    :param backing: what handlers wait for.
    :param observe: called with each :class:`StreamingRequest` that has come to its end.
    :ivar draining: whether connections are closed after the request they are at.
    """

    _log = Logger()
    protocol = StreamingChannel  # type: ignore[assignment]

    def __init__(
        self,
        resource: IResource,
        request_class: type[StreamingRequest],
        reactor: IReactorTime,
        limits: Limits,
        backing: Backing,
        observe: Callable[[Any], None],
    ) -> None:
        super().__init__(resource, requestFactory=request_class, timeout=None, reactor=reactor)
        self._parsePOSTFormSubmission = False
        self.limits = limits
        self.backing = backing
        self.channels: set[StreamingChannel] = set()
        self.draining = False
        self._observe = observe
        self._handlers = 0
        self._awaited: tuple[Callable[[], bool], Deferred[None]] | None = None
        self._watch = LoopingCall(self._check)
        self._watch.clock = reactor

    def startFactory(self) -> None:
        """Begin to watch over connections."""
        if not self._watch.running:
            self._watch.start(1.0, now=False)

    def stopFactory(self) -> None:
        """Keep watching: connections outlive the port they came through."""

    def _check(self) -> None:
        now = self.reactor.seconds()
        try:
            self.backing.tick()
        except Exception:
            self._log.failure("the storage could not be looked after")
        for channel in list(self.channels):
            try:
                channel.check(now)
            except Exception:
                self._log.failure("a connection could not be looked after")
                channel.transport.abortConnection()

    def log(self, request: StreamingRequest) -> None:  # type: ignore[override]
        """Tell the observer that *request* has come to its end."""
        self._observe(request)

    def running(self) -> Iterator[StreamingRequest]:
        """Yield the requests that have come and not ended."""
        for channel in self.channels:
            yield from (request for request in channel.requests if not request.finished)

    def getResourceFor(self, request: StreamingRequest) -> IResource:
        """Return the resource; the path goes to it as it was sent, escapes and all."""
        request.prepath = []
        request.postpath = request.path[1:].split(b"/")
        return cast(IResource, self.resource)

    def handle(
        self, request: StreamingRequest, handler: Coroutine[Deferred[Any], Any, Any]
    ) -> Deferred[Any]:
        """Run *handler* to its end, whatever happens to *request*.

        :return: fires with its result; cancelling it lets go of the result, nothing else.
        """
        request.handled = result = Deferred[Any](lambda _: None)
        self._handlers += 1
        running = Deferred.fromCoroutine(handler)

        def ended(outcome: object) -> None:
            self._handlers -= 1
            self._note()
            if not result.called:
                result.callback(outcome)
            elif isinstance(outcome, Failure) and not _is_expected(outcome):
                self._log.failure("a handler failed when nobody waited for it any more", outcome)

        running.addBoth(ended)
        return result

    async def drain(self, seconds: float, stop_listening: Callable[[], Deferred[Any]]) -> None:
        """Let what runs come to its end, and cut off what has not after *seconds*.

        Connections are taken until then, to be told that the site is draining.
        """
        self.draining = True
        deadline = self.reactor.callLater(seconds, self.abort)
        for channel in list(self.channels):
            if channel.idle:
                channel.close()
        await self._until(lambda: not self._handlers)
        await stop_listening()
        if not deadline.active():
            self.abort()  # who has come since
        await self._until(lambda: not self._handlers and not self.channels)
        if deadline.active():
            deadline.cancel()
        self._watch.stop()

    def _until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Return what fires when *condition*, of connections and handlers, holds."""
        self._awaited = (condition, Deferred[None]())
        _, done = self._awaited
        self._note()
        return done

    def abort(self) -> None:
        """Cut every connection."""
        for channel in list(self.channels):
            channel.transport.abortConnection()

    def forget(self, channel: StreamingChannel) -> None:
        """Note that *channel* is closed."""
        self.channels.discard(channel)
        self._note()

    def _note(self) -> None:
        """Look whether what is waited for has come."""
        if self._awaited is not None and self._awaited[0]():
            (_, done), self._awaited = self._awaited, None
            done.callback(None)


def _is_expected(failure: Failure) -> bool:
    """Tell whether *failure* is nobody's error: the client's end, or what it would be told."""
    if failure.check(BodyCutShort, ConsumerGone, CancelledError):
        return True
    problem = None if failure.value is None else problems.problem_of(failure.value)
    return problem is not None and problem.status != 500
