"""The client of a request as the operations see it."""

from __future__ import annotations

from httpnas.files.job import Outcome, Principal
from httpnas.transfer.sender import ConsumerGone
from httpnas.web.problems import problem_of
from httpnas.web.request import Request
from httpnas.web.server.body import BodyCutShort, BodyTooSlow
from httpnas.web.server.request import Ending


class RequestJob:
    """What is done for the client of a request; a :class:`httpnas.files.job.Job`."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def id(self) -> str:
        """The request's identity."""
        return self._request.id

    @property
    def client(self) -> str | None:
        """The client's address, None for one that has none, such as behind a Unix socket."""
        return self._request.client_address

    @property
    def principal(self) -> Principal | None:
        """Who has sent the request."""
        return self._request.principal

    @property
    def given_up(self) -> bool:
        """Whether the client was told to try again."""
        return self._request.given_up

    @property
    def client_gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self._request.gone

    def outcome(self, error: BaseException) -> Outcome:
        """Return how the request has ended for its client when *error* has ended it."""
        if isinstance(error, ConsumerGone | BodyCutShort):
            return Outcome(self._request.why_gone.value)
        if isinstance(error, BodyTooSlow):
            return Outcome(Ending.CLIENT_TOO_SLOW.value, 408)
        problem = problem_of(error)
        if problem is None or problem.status == 500:
            return Outcome(Ending.FAILED.value, 500)
        return Outcome(Ending.REFUSED.value, problem.status)
