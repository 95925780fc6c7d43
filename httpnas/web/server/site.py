"""All connections of one daemon: watching over them, and shutting down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolNegotiationFactory, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from httpnas.fields.conditions import format_http_date
from httpnas.web.server import channel
from httpnas.web.server.application import Application, Backend
from httpnas.web.server.channel import StreamingChannel
from httpnas.web.server.deadlines import Limits
from httpnas.web.server.handlers import Awaited, Handlers
from httpnas.web.server.places import (
    CONNECTION,
    EXTRA,
    KEEP,
    KEEP_OF_BODY,
    LONG,
    REQUEST,
    Places,
    Share,
)
from httpnas.web.server.request import StreamingRequest


@implementer(IProtocolNegotiationFactory)
class StreamingSite(ServerFactory, channel.Site):
    """The factory of :class:`StreamingChannel`, and the watch over its connections.

    :param route: answers a request whose head is complete.
    :param request_class: what requests are made of.
    :param reactor: tells the time.
    :param limits: the time limits of its connections.
    :param backend: what handlers wait for when they do not wait for their client.
    :param application: what is served.
    :param places: room for connections and requests.
    :param share: how many connections a client may have.
    :ivar handlers: those that run.
    :ivar channels: the connections that are open.
    :ivar draining: whether connections are closed after the request they are at.
    """

    _log = Logger()

    def __init__(
        self,
        route: Callable[[Any], None],
        request_class: type[StreamingRequest],
        reactor: IReactorTime,
        limits: Limits,
        backend: Backend,
        application: Application,
        places: Places,
        share: Share,
    ) -> None:
        self.route = route
        self.request_class = request_class
        self.reactor = reactor
        self.limits = limits
        self.backend = backend
        self.application = application
        self._places = places
        self.share = share
        self._extra: dict[StreamingChannel, None] = {}
        self.channels: set[StreamingChannel] = set()
        self.draining = False
        self._at_rest = Awaited()
        self.handlers = Handlers(application.is_expected, self._at_rest.changed)
        self._watch = LoopingCall(self._check)
        self._watch.clock = reactor
        self._dated, self._date = 0, b""

    def buildProtocol(self, addr: object) -> StreamingChannel:
        """Return a new connection."""
        return StreamingChannel(self)

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols that TLS may agree upon (RFC 7301)."""
        return [b"http/1.1"]

    @property
    def date(self) -> bytes:
        """The value of Date, which is made once a second."""
        now = int(time.time())
        if now != self._dated:
            self._dated, self._date = now, format_http_date(now)
        return self._date

    def startFactory(self) -> None:
        """Begin to watch over connections."""
        if not self._watch.running:
            self._watch.start(1.0, now=False)

    def stopFactory(self) -> None:
        """Keep watching: connections outlive the port they came through."""

    def _check(self) -> None:
        now = self.reactor.seconds()
        try:
            self.backend.tick()
        except Exception:
            self._log.failure("the backend could not be checked")
        for connection in list(self.channels):
            try:
                connection.probe()
                connection.deadlines.check(now)
            except Exception:
                self._log.failure("the deadlines of a connection could not be checked")
                connection.abort()

    def log(self, request: StreamingRequest) -> None:
        """Tell the application that *request* has ended."""
        self.application.request_ended(request)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self.channels)

    def running(self) -> Iterator[Any]:
        """Yield the requests that have come and not ended, of the site's own class."""
        for connection in self.channels:
            yield from (request for request in connection.requests if not request.finished)

    # Room

    def take_place(self) -> bool:
        """Return whether there is a place for another connection."""
        return self._places.take(CONNECTION) or (self._shed() and self._places.take(CONNECTION))

    def take_room(self, length: int | None) -> bool:
        """Return whether there is room for another request, with a body of *length* bytes."""
        is_long = length is None or length > LONG
        while not self._places.take(REQUEST, KEEP_OF_BODY if is_long else KEEP):
            if not self._shed():
                return False
        return True

    def _shed(self) -> bool:
        """End the connection that has had no request for the longest, if there is one."""
        waiting = [c for c in self.channels if c.has_place and not c.deadlines.is_handling]
        if not waiting:
            return False
        longest = min(waiting, key=lambda connection: connection.deadlines.since)
        longest.has_place = False
        self.add_extra(longest)  # until it has taken its last answer
        longest.give_way()
        self.give_back_place()
        return True

    def add_extra(self, channel: StreamingChannel) -> None:
        """Keep *channel* without a place, and end the oldest of too many such connections."""
        self._extra[channel] = None
        if len(self._extra) > EXTRA:
            oldest = next(iter(self._extra))
            del self._extra[oldest]
            oldest.abort()

    def give_back_place(self) -> None:
        """Note that a connection that had a place is closed."""
        self._places.give_back(CONNECTION)

    def give_back_room(self) -> None:
        """Note that a request that had room has ended, and its answer has been taken."""
        self._places.give_back(REQUEST)

    # Shutting down

    async def drain(self, seconds: float, stop_listening: Callable[[], Deferred[Any]]) -> None:
        """Let what runs come to its end, and cut off what has not after *seconds*.

        Connections are taken until then, to be told that the site is draining.

        :param stop_listening: closes the ports; fires when no connection comes any more.
        """
        self.draining = True
        deadline = self.reactor.callLater(seconds, self.abort)
        for connection in list(self.channels):
            if connection.deadlines.is_idle:
                connection.close()
        await self._at_rest.until(lambda: not self.handlers.running)
        await stop_listening()
        if not deadline.active():
            self.abort()  # who has come since
        await self._at_rest.until(lambda: not self.handlers.running and not self.channels)
        if deadline.active():
            deadline.cancel()
        self._watch.stop()

    def abort(self) -> None:
        """Cut every connection."""
        for connection in list(self.channels):
            connection.abort()

    def forget(self, channel: StreamingChannel) -> None:
        """Note that *channel* is closed."""
        self.channels.discard(channel)
        self._extra.pop(channel, None)
        self._at_rest.changed()
