"""The lines of the log about requests that were refused because of who sent them."""

from __future__ import annotations

from twisted.logger import Logger

from httpnas.access.errors import LinkRefused, MissingRight, TooManyFailures, Unauthenticated
from httpnas.access.pace import Pace
from httpnas.web.access_log import name_of
from httpnas.web.request import Request

#: What is logged.
Refusal = Unauthenticated | MissingRight | LinkRefused | TooManyFailures

#: Lines that one client may cause at once, and seconds between further ones.
AT_ONCE, EVERY = 50, 1.0


class Audit:
    """Logs refusals, so many of each client: else whoever is refused could fill the log.

    The others are counted, and the next line is preceded by one that says how many they are.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._pace = Pace(AT_ONCE, EVERY)
        self._untold = 0

    def refused(self, request: Request, error: Refusal, client: bytes | None) -> None:
        """Log that *request* was refused, without anything that is secret.

        :param client: who has sent it; all who are behind proxies are one.
        """
        if self._pace.take(client or b"", request.site.reactor.seconds()):
            self._untold += 1
            return
        if self._untold:
            self._log.warn(
                "audit: {count} more refusals have no line: their clients have many",
                count=self._untold,
            )
            self._untold = 0
        self._log.warn(
            "audit: request {id} of {client} as {who} was refused ({verb} {name}): {error}",
            id=request.id,
            client=request.client_address,
            who=request.principal.name if request.principal else "nobody known",
            verb=request.verb,
            name=name_of(request),
            error=error,
        )
