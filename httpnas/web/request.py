"""A request as the doors know it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from httpnas.fields.conditions import Conditions
from httpnas.files.job import Principal
from httpnas.web.server.request import StreamingRequest

_CONDITIONAL = frozenset(
    {b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range"}
)
_UNCONDITIONAL = Conditions()


class Request(StreamingRequest):
    """A request, with what its log line, its metrics and a problem document say of it.

    :ivar door: the group of routes that it came to, and :attr:`verb`, what is done there; both
        are ``none`` when there is no such route.
    :ivar name: what it is about, once the door has found that out.
    :ivar principal: who has sent it, None when nobody is asked who he is.
    :ivar counted: bytes in and out that the metrics have counted.
    :ivar problem: the code of the problem that it is answered with, None for none.
    :ivar problem_members: what a problem document that answers it has besides the usual members
        (RFC 9457 section 3.2).
    :ivar sending: fires when a long answer has been given to the client; None if there is none.
    """

    door = verb = "none"
    name: bytes | None = None
    principal: Principal | None = None
    problem: str | None = None
    sending: Deferred[None] | None = None
    counted = (0, 0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.problem_members: dict[str, object] = {}

    @property
    def client_address(self) -> str | None:
        """The address it came from; an IPv4 address also if a socket for IPv6 took it."""
        host: str | None = getattr(self.client, "host", None)
        return host and host.removeprefix("::ffff:")

    def conditions(self) -> Conditions:
        """Return the preconditions that the request carries (RFC 9110 section 13)."""
        if _CONDITIONAL.isdisjoint(self.head.fields):
            return _UNCONDITIONAL
        return Conditions.parse(self.field_lines)
