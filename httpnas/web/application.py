"""The application that the server serves: how it refuses, and what it does when a request ends."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import CancelledError

from httpnas.transfer.sender import ConsumerGone
from httpnas.web.access_log import log_request
from httpnas.web.metrics import Metrics
from httpnas.web.problems import PROBLEM, Kind, Problem, document, problem_of
from httpnas.web.request import Request
from httpnas.web.server.body import BodyCutShort


class NasApplication:
    """What the server asks of the layers above (:class:`.server.application.Application`).

    :param metrics: count the requests.
    :param resource_policy: which sites' pages may show or run what is answered, as the value of
        Cross-Origin-Resource-Policy (Fetch standard).
    """

    def __init__(self, metrics: Metrics, resource_policy: str) -> None:
        self._metrics = metrics
        self.fields: Sequence[tuple[bytes, bytes]] = (
            # Most answers are about the moment; files, listings and pages say otherwise.
            (b"Cache-Control", b"no-store"),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Cross-Origin-Resource-Policy", resource_policy.encode()),
        )

    def refusal(self, status: int, detail: str, identity: str) -> tuple[bytes, bytes]:
        """Return the media type and the content of a problem document."""
        kind = Kind.of_status(status)
        self._metrics.refused(kind.code)
        return PROBLEM, document(Problem(kind, detail), identity)

    def request_ended(self, request: Request) -> None:
        """Log and count *request*."""
        log_request(request)
        self._metrics.request_ended(request)

    def is_expected(self, error: BaseException) -> bool:
        """Tell whether *error* is nobody's fault: the client has gone, or would be told of it."""
        if isinstance(error, BodyCutShort | ConsumerGone | CancelledError):
            return True
        problem = problem_of(error)
        return problem is not None and problem.status != 500
