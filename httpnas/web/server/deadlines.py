"""What takes too long on one connection, and how it is ended.

A connection is always in one phase: it waits for a request (idle), for the rest of its head, for
its body and its answer, for the end of a body that nobody wants (drain), or for the client to
close (linger). Besides, the client may stop taking what is sent to it, in any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from httpnas.web.server.application import Backend
from httpnas.web.server.body import Body, BodyTooSlow

#: Bytes that have to move in ``Limits.stall`` seconds.
PROGRESS = 64 << 10


class Limits:
    """The time limits of a connection, all in seconds.

    :param stall: in which :data:`PROGRESS` bytes of a body or a download have to move.
    :param headers: from the first byte of a request to the end of its head.
    :param idle: for which a connection without a request is kept open.
    :param linger: in which a refused client has to end its body, and then to close.
    """

    def __init__(
        self, stall: float = 300, headers: float = 30, idle: float = 75, linger: float = 5
    ) -> None:
        self.stall = stall
        self.headers = headers
        self.idle = idle
        self.linger = linger


class Request(Protocol):
    """A request whose head is complete, as its deadlines see it."""

    body: Body
    finished: bool
    sentLength: int

    def give_up(self) -> None:
        """Answer that the backend does not answer; the handler may end whenever it can."""


class Connection(Protocol):
    """A connection, as its deadlines end it."""

    def unsent(self) -> int:
        """Return how many bytes wait for the socket."""

    def refuse(self, status: int, detail: str) -> None:
        """Answer a request that cannot be served, and close."""

    def linger(self) -> None:
        """Close for writing, and wait for the client to close."""

    def close(self) -> None:
        """Close when everything that was written has gone out."""

    def abort(self) -> None:
        """Cut the connection."""

    def cut_off_slow_client(self) -> None:
        """Cut the connection of a client that does not take what is sent to it."""


class _Sending:
    """How long the client has taken next to nothing of what is sent to it.

    :param unsent: returns how many bytes wait for the socket.
    :param seconds: tells the time.
    """

    def __init__(self, unsent: Callable[[], int], seconds: Callable[[], float]) -> None:
        self._unsent = unsent
        self._seconds = seconds
        self._since: float | None = None
        self._left = 0

    @property
    def is_blocked(self) -> bool:
        return self._since is not None

    def block(self) -> None:
        if self._since is None:
            self._begin()

    def unblock(self) -> None:
        self._since = None

    def _begin(self) -> None:
        self._since, self._left = self._seconds(), self._unsent()

    def stalled(self, now: float) -> float:
        """Return for how many seconds it is blocked without progress at the time *now*."""
        if self.is_blocked and self._left - self._unsent() >= PROGRESS:
            self._begin()
        return 0.0 if self._since is None else now - self._since


class _Handling:
    """How far the handling of one request has come, and since when nothing has moved for it."""

    def __init__(self, request: Request, backend: Backend) -> None:
        self.request = request
        self._backend = backend
        self._received = 0
        self._moved, self._since = 0, backend.now

    def waits_for_us(self) -> bool:
        """Tell whether the client has done what it can, and it is our turn.

        A client that waits for ``100 Continue`` has: nobody has asked for the body yet.
        """
        body = self.request.body
        return body.paused or body.ended or body.is_unclaimed

    def has_received(self) -> bool:
        """Tell whether enough of the body has come since this was last true."""
        return self.request.body.received - self._received >= PROGRESS

    def note_received(self) -> None:
        self._received = self.request.body.received

    def check_backend(self, is_awaited: bool) -> None:
        """Give the request up if nothing has moved for too long though its client is ready.

        :param is_awaited: whether nothing but the backend can be waited for.
        """
        request, now = self.request, self._backend.now
        moved = request.body.received + request.sentLength
        if not is_awaited or moved != self._moved:
            self._moved, self._since = moved, now
        elif now - self._since > self._backend.hang_timeout and not request.finished:
            request.give_up()


class Deadlines:
    """The deadlines of one connection.

    :param connection: is ended when they have passed.
    :param limits: may change later.
    :param backend: what requests wait for when they do not wait for their client.
    :param seconds: tells the time.
    :param is_urged: tells whether the site is shutting down, or full; then a connection without a
        request, or with a part of its head, is kept for ``Limits.linger`` only.
    :ivar since: when its phase began.
    """

    def __init__(
        self,
        connection: Connection,
        limits: Limits,
        backend: Backend,
        seconds: Callable[[], float],
        is_urged: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._backend = backend
        self._seconds = seconds
        self._is_urged = is_urged
        self._sending = _Sending(connection.unsent, seconds)
        self._handling: _Handling | None = None
        self.enter_idle()

    def check(self, now: float) -> None:
        """End what has taken too long at the time *now*, in seconds; called once a second."""
        if self._sending.stalled(now) > self._limits.stall:
            self._connection.cut_off_slow_client()
        else:
            self._phase(now - self.since)

    # What the client takes

    @property
    def is_blocked(self) -> bool:
        """Whether the client takes nothing at the moment."""
        return self._sending.is_blocked

    def block(self) -> None:
        """Note that the client takes nothing more for now."""
        self._sending.block()

    def unblock(self) -> None:
        """Note that the client has taken everything."""
        self._sending.unblock()

    # The phases

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self._phase == self._check_idle

    @property
    def is_handling(self) -> bool:
        """Whether a request is under way whose head is complete, or a body that nobody wants."""
        return self._phase in (self._check_body, self._check_drain)

    def enter_idle(self) -> None:
        """Begin to wait for a request."""
        self._enter(self._check_idle)

    def enter_head(self) -> None:
        """Begin to wait for the rest of a head."""
        self._enter(self._check_head)

    def enter_body(self, request: Request) -> None:
        """Begin to wait for the body of *request* and for its answer."""
        self._enter(self._check_body)
        self._handling = _Handling(request, self._backend)

    def enter_drain(self) -> None:
        """Begin to wait for the end of a body that nobody wants."""
        self._enter(self._check_drain)

    def enter_linger(self) -> None:
        """Begin to wait for the client to close."""
        self._enter(self._check_linger)

    def _enter(self, phase: Callable[[float], None]) -> None:
        self._phase, self.since = phase, self._seconds()
        self._handling = None

    def _check_idle(self, age: float) -> None:
        if self.is_blocked:
            self.since = self._seconds()  # it still takes the last answer
        elif age > self._unless_urged(self._limits.idle):
            self._connection.close()

    def _check_head(self, age: float) -> None:
        if age > self._unless_urged(self._limits.headers):
            self._connection.refuse(408, "The headers of the request did not arrive in time.")

    def _unless_urged(self, limit: float) -> float:
        return min(limit, self._limits.linger) if self._is_urged() else limit

    def _check_body(self, age: float) -> None:
        handling = self._handling
        assert handling is not None
        waits_for_us = handling.waits_for_us()
        if waits_for_us or handling.has_received():
            handling.note_received()
            self.since = self._seconds()
        elif age > self._limits.stall:
            handling.request.body.fail(BodyTooSlow())
        handling.check_backend(waits_for_us and not self.is_blocked)

    def _check_drain(self, age: float) -> None:
        if age > self._limits.linger:
            self._connection.linger()

    def _check_linger(self, age: float) -> None:
        if age > self._limits.linger:
            self._connection.abort()
