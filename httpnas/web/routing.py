"""The routes. Klein matches doors and methods only; each door reads the names itself.

So all names below a door match the same rule, and what Klein has found for one of them holds for
the others: it is kept by method and by the shape of the path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Protocol, cast

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter

from httpnas.access.authentication import Authentication
from httpnas.access.errors import MissingRight
from httpnas.fields.clients import Clients
from httpnas.fields.origins import host_of, is_at, origin_of
from httpnas.transfer.sender import ConsumerGone
from httpnas.web.answers import answer, answer_problem
from httpnas.web.audit import Audit, Refusal
from httpnas.web.problems import Kind, Problem, busy, problem_of
from httpnas.web.query import link_of
from httpnas.web.request import Request
from httpnas.web.server.body import BodyCutShort

_log = Logger()
_SAFE = (b"GET", b"HEAD", b"OPTIONS")

Handler = Callable[[Request], Coroutine[Deferred[Any], Any, None]]


class _Rest(BaseConverter):
    """The rest of a path, whatever it contains."""

    regex = ".*"
    part_isolating = False


#: What stands in a rule for all names below its door.
_BELOW = "<rest:_>"
#: Pairs of method and shape whose rules are remembered.
_KEPT = 1024
#: The doors that answer even while the daemon is stopping.
_TO_THE_END = ("operations", "page")
#: Fields of an answer that pages of other sites may read, besides those that they always may.
_EXPOSED = (
    b"Accept-Ranges, Content-Disposition, Content-Range, ETag, Location, Repr-Digest, "
    b"Retry-After, Upload-Offset, X-Request-ID"
)
#: Methods that pages of other sites may use. Each door says which of them a name takes.
_SHARED = b"DELETE, GET, HEAD, POST, PUT"
#: Seconds for which a browser may remember the answer to a preflight.
_PREFLIGHT = b"600"


class Door(Protocol):
    """A group of routes for one dialect: what parses, calls an operation and answers."""

    def mount(self, router: Router) -> None:
        """Add the routes to *router*."""


class Router:
    """The routes of all doors, and the checks that come before all of them.

    :param origins: of sites whose pages may use every door (the CORS protocol of the Fetch
        standard), as browsers spell them in Origin.
    :param hosts: the host names that the daemon answers to, none or ``*`` for any; may be filled
        until the first request comes. A page whose own host name was made to point here (DNS
        rebinding) still asks for its own.
    :param authentication: finds out who asks, None when that makes no difference.
    :param https_port: where clients find TLS that have come without it; None to serve them there.
    :param clients: tells which requests come from one client.
    """

    def __init__(
        self,
        origins: Collection[bytes] = (),
        hosts: Collection[bytes] = (),
        authentication: Authentication | None = None,
        https_port: int | None = None,
        clients: Clients | None = None,
    ) -> None:
        self._origins = frozenset(origins)
        self._hosts = hosts
        self._authentication = authentication
        self._https_port = https_port
        self._clients = clients or Clients()
        self._audit = Audit()
        self._app = Klein()
        self._app.url_map.converters["rest"] = _Rest
        self._app.url_map.merge_slashes = False
        self._adapter = self._app.url_map.bind("localhost")
        self._endpoint = lru_cache(_KEPT)(self._match)
        self._prefixes: set[str] = set()

    def route(self, request: Request) -> None:
        """Answer *request*; every error becomes a problem document."""
        try:
            endpoint = self._endpoint(request.method.decode(), self._shape(request.path.decode()))
            handled: Any = self._app.execute_endpoint(endpoint, cast(Any, request))
        except Exception:
            self._failed(request, Failure())
        else:
            handled.addErrback(lambda failure: self._failed(request, failure))

    def _match(self, method: str, path: str) -> str:
        endpoint: str = self._adapter.match(path, method)[0]
        return endpoint

    def _shape(self, path: str) -> str:
        """Return a path that matches what *path* does: the same for all names below a door."""
        end = path.find("/", 1) + 1
        return path[:end] + "_" if path[:end] in self._prefixes and len(path) > end else path

    def add_page(self, door: str, rule: str, handler: Handler, any_host: bool = False) -> None:
        """Let *handler* answer GET and HEAD for *rule*, and answer OPTIONS accordingly."""

        async def options(request: Request) -> None:
            request.setHeader(b"Allow", b"GET, HEAD, OPTIONS")
            answer(request, b"", 204)

        self.add(door, rule, ["GET"], handler, any_host)
        self.add(door, rule, ["OPTIONS"], options)

    def add(
        self,
        door: str,
        rule: str,
        methods: Sequence[str] | None,
        handler: Handler,
        any_host: bool = False,
    ) -> None:
        """Let *handler* answer requests for *rule* with *methods* (None: all other methods).

        The handler runs to its end even when the client goes away. What waits for the client fails
        then, and everything else is finished.

        :param door: the group that the rule belongs to, for the metrics. The verb is the name of
            the handler until the handler sets another one.
        :param any_host: answer whatever Host says, whoever asks, and without TLS: orchestrators ask
            by address, and have neither credentials nor certificates to trust.
        """

        def endpoint(request: Request, **_: object) -> Deferred[None]:
            request.door, request.verb = door, handler.__name__
            if not request.path.startswith(b"/"):
                raise _nothing_here()
            if not request.method.isupper():  # the router does not tell delete from DELETE
                raise Problem(
                    Kind.UNKNOWN_METHOD, "There is no such method; method names are case-sensitive."
                )
            if not any_host:
                self._admit_host(request)
                if self._https_port is not None and not request.is_secure:
                    return request.handle(_redirect(request, self._https_port))
            self._admit_origin(request)
            if request.site.draining and door not in _TO_THE_END:
                raise busy(
                    Kind.DRAINING, "The server is stopping; another may take its place soon."
                )
            if request.site.backend.away and door not in _TO_THE_END:
                raise busy(Kind.STORAGE_AWAY, "The storage does not answer. Try again soon.")
            if door != "operations":
                _admit_load(request)
            return request.handle(self._to_its_end(handler, request, any_host))

        endpoint.__name__ = f"{handler.__qualname__} {rule}"
        self._app.route(rule, methods=methods, strict_slashes=False)(endpoint)
        if rule.endswith(_BELOW):
            self._prefixes.add(rule.removesuffix(_BELOW))

    def _admit_host(self, request: Request) -> None:
        if not self._hosts or b"*" in self._hosts:
            return
        host = request.getHeader(b"Host")  # of HTTP/1.0 there may be none, which no browser sends
        if host is not None and host_of(host) not in self._hosts:
            raise Problem(Kind.WRONG_HOST, "The server does not answer to the name in Host.")

    def _admit_origin(self, request: Request) -> None:
        """Keep pages of other sites from changing things through their visitors' browsers.

        Browsers say where a request comes from (Fetch Metadata, and the Origin field of the
        Fetch standard); other clients say nothing.
        """
        origin = request.getHeader(b"Origin")
        if self._origins:
            request.setHeader(b"Vary", b"Origin")
        if origin is not None and origin_of(origin) in self._origins:
            _share(request, origin)
        elif request.method not in _SAFE and _is_cross_site(request, origin):
            raise Problem(Kind.CROSS_SITE, "A page of another site may not change anything here.")

    async def _to_its_end(self, handler: Handler, request: Request, any_host: bool) -> None:
        if self._authentication is not None and not any_host:
            link = link_of(request.query)
            if link is not None:
                request.setHeader(b"Referrer-Policy", b"no-referrer")  # the query is a credential
            request.principal = await self._authentication.identify(
                request.method,
                request.field_lines(b"Authorization"),
                link,
                request.certificate,
                self._clients.of(request.client_address),
            )
        await handler(request)
        if request.sending is not None:
            await request.sending
            request.finish()

    def _failed(self, request: Request, failure: Failure) -> None:
        error = failure.value
        assert error is not None
        if isinstance(error, BodyCutShort | ConsumerGone | CancelledError):
            return
        if isinstance(error, Refusal):
            self._audit.refused(request, error, self._clients.of(request.client_address))
        if isinstance(error, MissingRight):
            request.problem_members["rights"] = error.rights
        problem = _of_routing(error) if isinstance(error, HTTPException) else problem_of(error)
        if problem is None or problem.status == 500:
            _log.failure("request {id} failed", failure, id=request.id)
            problem = problem or Problem(
                Kind.SERVER_FAILED, "The server failed to answer; its log says why."
            )
        answer_problem(request, problem)


async def _redirect(request: Request, port: int) -> None:
    """Send the client to the same at HTTPS, with the same method (RFC 9110 section 15.4.9)."""
    host = host_of(request.getHeader(b"Host") or b"")
    if host is None:
        raise Problem(Kind.WRONG_HOST, "This is served by HTTPS. Without Host, nobody knows where.")
    at = host if port == 443 else b"%b:%d" % (host, port)
    query = b"?" + request.query if request.query else b""
    request.setHeader(b"Location", b"https://" + at + request.path + query)
    answer(request, b"", 308)


def _admit_load(request: Request) -> None:
    if not request.has_share:
        raise busy(
            Kind.TOO_MANY_CONNECTIONS,
            "Your address has as many connections as one may have. Try again.",
        )
    if not request.has_room:
        raise busy(Kind.OUT_OF_DESCRIPTORS, "The server is at its limit of requests. Try again.")


def _share(request: Request, origin: bytes) -> None:
    """Allow pages of *origin* to see the answer."""
    request.setHeader(b"Access-Control-Allow-Origin", origin)
    request.setHeader(b"Access-Control-Expose-Headers", _EXPOSED)
    if request.method == b"OPTIONS" and request.getHeader(b"Access-Control-Request-Method"):
        request.setHeader(b"Access-Control-Allow-Methods", _SHARED)
        request.setHeader(b"Access-Control-Max-Age", _PREFLIGHT)
        wanted = request.getHeader(b"Access-Control-Request-Headers")
        if wanted:
            request.setHeader(b"Access-Control-Allow-Headers", wanted)


def _is_cross_site(request: Request, origin: bytes | None) -> bool:
    site = request.getHeader(b"Sec-Fetch-Site")
    if site is not None:  # it holds even behind a proxy that rewrites Host
        return site in (b"cross-site", b"same-site")
    return origin is not None and not is_at(origin, request.getHeader(b"Host") or b"")


def _of_routing(error: HTTPException) -> Problem:
    if isinstance(error, MethodNotAllowed):
        allow = ", ".join(sorted(error.valid_methods or []))
        return Problem(
            Kind.METHOD_NOT_ALLOWED,
            "This path does not take this method; Allow lists those it takes.",
            Allow=allow,
        )
    return _nothing_here()


def _nothing_here() -> Problem:
    return Problem(Kind.NO_SUCH_PATH, "There is nothing here. Files are below /file/.")
