"""A request as the doors know it."""

from __future__ import annotations

from typing import Any

from httpnas.web.server.request import StreamingRequest


class Request(StreamingRequest):
    """A request, with what its log line, its metrics and a problem document say of it.

    :ivar door: the group of routes that it came to, and :attr:`verb`, what is done there; both
        are ``none`` when there is no such route.
    :ivar name: what it is about, once the door has found that out.
    :ivar told: members of a problem document that answers it, besides its own.
    """

    door = verb = "none"
    name: bytes | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told: dict[str, object] = {}
