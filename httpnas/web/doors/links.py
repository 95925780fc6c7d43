"""``/links``: makes links, which carry a right to whoever has no credentials."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeGuard

from httpnas.access.authentication import Authentication
from httpnas.access.links import RIGHTS, Grant
from httpnas.fields.names import check_name, quote_component
from httpnas.files.points import Admit, Intent, Verb
from httpnas.web.answers import answer, answer_json
from httpnas.web.documents import json_of
from httpnas.web.job import RequestJob
from httpnas.web.problems import Kind, Problem
from httpnas.web.request import Request
from httpnas.web.routing import Router

_MEMBERS = frozenset({"method", "path", "prefix", "seconds", "max_bytes", "create_only"})


class LinksDoor:
    """The route of one door.

    :param authentication: has the keys, None when there are none.
    """

    def __init__(self, admit: Admit, authentication: Authentication | None) -> None:
        self._admit = admit
        self._authentication = authentication

    def mount(self, router: Router) -> None:
        """Add the routes to *router*."""
        add = partial(router.add, "links", "/links")
        add(["POST"], self.sign)
        add(["OPTIONS"], self.options)

    async def sign(self, request: Request) -> None:
        """Make a link for a method and a name, which its client may use itself."""
        authentication = self._authentication
        if authentication is None or not authentication.policy.link_keys:
            raise Problem(Kind.NO_SUCH_PATH, "There are no keys for links here.")
        job = RequestJob(request)
        self._admit(job, Intent(Verb.SIGN, b"", below=True))
        members = await json_of(request.body, lambda: _no_link("The body is no JSON object."))
        grant = _grant(members, authentication.policy.longest_link)
        request.name = grant.name
        self._admit(job, Intent(Verb.SIGN, grant.name))
        link = authentication.sign(request.principal, grant)
        path = "/".join(quote_component(part) for part in grant.name.split(b"/"))
        slash = "/" if grant.below and grant.name else ""
        expires = datetime.fromtimestamp(grant.expires, timezone.utc)
        answer_json(
            request,
            {
                "url": f"/file/{path}{slash}?link={link}",
                "expires": f"{expires:%Y-%m-%dT%H:%M:%SZ}",
            },
        )

    async def options(self, request: Request) -> None:
        """List the methods of this path."""
        request.setHeader(b"Allow", b"OPTIONS, POST")
        answer(request, b"", 204)


def _grant(members: dict[str, Any], longest: int) -> Grant:
    """Return what the document of a request asks for.

    :param longest: how many seconds a link may count.
    """
    if unknown := sorted(members.keys() - _MEMBERS):
        raise _no_link(f"There is no member {unknown[0]!r}.")
    method, path, seconds = members.get("method"), members.get("path"), members.get("seconds")
    if not isinstance(method, str) or method not in RIGHTS:
        raise _no_link(f"method must be one of {', '.join(RIGHTS)}.")
    if not isinstance(path, str):
        raise _no_link("path must be the name of a file or folder.")
    if not _is_number(seconds) or not 0 < seconds <= longest:
        raise _no_link(f"seconds must be a number from 1 to {longest}.")
    below, create_only = members.get("prefix", False), members.get("create_only", False)
    if not isinstance(below, bool) or not isinstance(create_only, bool):
        raise _no_link("prefix and create_only must be true or false.")
    if create_only and method != "POST":
        raise _no_link("create_only is for POST.")
    most = members.get("max_bytes")
    if most is not None and (not _is_number(most) or not 0 <= most < 1 << 63):
        raise _no_link("max_bytes must be a number of bytes.")
    name = check_name(path.encode("utf-8", "surrogatepass"))
    return Grant(method, name, below, int(time.time()) + seconds, create_only, most)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _no_link(why: str) -> Problem:
    return Problem(Kind.NOT_A_LINK, why)
