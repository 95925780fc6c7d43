"""Klein, told to match doors and methods only: names are none of its business."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter

from httpnas.transfer.sender import ConsumerGone
from httpnas.web import problems
from httpnas.web.body import BodyCutShort
from httpnas.web.problems import Problem, problem_of
from httpnas.web.streaming import StreamingRequest

_log = Logger()
_SAFE = (b"GET", b"HEAD", b"OPTIONS")

Handler = Callable[[StreamingRequest], Coroutine[Deferred[Any], Any, None]]


class _Rest(BaseConverter):
    """All that is left of a path, of any shape."""

    regex = ".*"
    part_isolating = False


def make_app() -> Klein:
    """Return an application without routes, which turns every error into a problem document."""
    app = Klein()
    app.url_map.converters["rest"] = _Rest
    app.url_map.merge_slashes = False
    app.handle_errors(Exception)(_failed)
    return app


def route(app: Klein, rule: str, methods: Sequence[str] | None, handler: Handler) -> None:
    """Let *handler* answer requests for *rule* by *methods* (None: any that is left).

    It runs to its end even when the client goes away in between: what waits for the client
    fails then, and everything else is worth finishing.
    """

    def endpoint(request: StreamingRequest, **_: object) -> Deferred[None]:
        if not request.path.startswith(b"/"):
            raise _nothing_here()
        if not request.method.isupper():  # the router does not tell delete from DELETE
            raise Problem(501, "There is no such method; their names are case-sensitive.")
        _refuse_cross_site(request)
        return request.site.handle(handler(request))

    endpoint.__name__ = f"{handler.__qualname__} {rule}"
    app.route(rule, methods=methods, strict_slashes=False)(endpoint)


def _refuse_cross_site(request: StreamingRequest) -> None:
    """Keep other sites' pages from changing things through their visitors' browsers.

    Browsers say where a request comes from (Fetch Metadata, and the Origin field of the Fetch
    standard); other clients say nothing.
    """
    if request.method in _SAFE:
        return
    site = request.getHeader(b"Sec-Fetch-Site")
    origin = request.getHeader(b"Origin")
    foreign = origin is not None and _authority(origin) != (request.getHeader(b"Host") or b"")
    if site in (b"cross-site", b"same-site") or foreign:
        raise Problem(403, "A page of another site may not change anything here.")


def _authority(origin: bytes) -> bytes:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return b""


def _failed(request: Any, failure: Failure) -> None:
    error = failure.value
    assert error is not None
    if isinstance(error, BodyCutShort | ConsumerGone):
        return
    problem = _of_routing(error) if isinstance(error, HTTPException) else problem_of(error)
    if problem is None or problem.status == 500:
        _log.failure("request {id} failed", failure, id=request.id)
        problem = problem or Problem(500, "The server failed to answer; its log says why.")
    problems.answer(request, problem.status, problem.detail, **problem.headers)


def _of_routing(error: HTTPException) -> Problem:
    if isinstance(error, MethodNotAllowed):
        allow = ", ".join(sorted(error.valid_methods or []))
        return Problem(405, "This can not be done here; Allow says what can.", Allow=allow)
    return _nothing_here()


def _nothing_here() -> Problem:
    return Problem(404, "There is nothing here. Files are below /file/.")
