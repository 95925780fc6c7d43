"""``/rights``: tells a client who it is taken for, and what it may do."""

from __future__ import annotations

from httpnas.access.admission import Subject
from httpnas.access.authentication import Authentication
from httpnas.access.errors import Unauthenticated
from httpnas.access.rules import ANONYMOUS, OF_THE_DAEMON, Right
from httpnas.fields.names import check_name
from httpnas.files.points import Intent, Verb
from httpnas.web.answers import answer_json
from httpnas.web.problems import Kind, Problem
from httpnas.web.query import parse_query
from httpnas.web.request import Request
from httpnas.web.routing import Router


class RightsDoor:
    """The route of one door. It asks the rules and never the disk.

    :param authentication: has the rules, None when everybody may do everything.
    """

    def __init__(self, authentication: Authentication | None) -> None:
        self._authentication = authentication

    def mount(self, router: Router) -> None:
        """Add the route to *router*."""
        router.add_page("rights", "/rights", self.rights)

    async def rights(self, request: Request) -> None:
        """Answer which rights the client has at a path, or at some name below it.

        So what is not among them is refused at all these names. What is may be refused at some.
        """
        fields = parse_query(request.query)
        name = check_name(fields.get("path", "").encode())
        anonymous = fields.get("anonymous", "yes")
        if anonymous not in ("yes", "no"):
            raise Problem(Kind.BAD_QUERY, "anonymous must be yes or no.")
        request.name = name
        subject = request.principal
        if not isinstance(subject, Subject):
            rights = [right.value for right in Right if right is not Right.SIGN]
            answer_json(request, {"principal": None, "path": name.decode(), "rights": rights})
            return
        if subject.name == ANONYMOUS and anonymous == "no":
            raise Unauthenticated("Tell who you are.", subject.challenges)
        may_sign = self._authentication is not None and bool(self._authentication.policy.link_keys)
        everywhere = Intent(Verb.LIST, name, below=True)
        of_the_daemon = Intent(Verb.LIST, b"")
        rights = [
            right.value
            for right in Right
            if subject.allows(right, of_the_daemon if right in OF_THE_DAEMON else everywhere)
            and (may_sign or right is not Right.SIGN)
        ]
        principal = {"name": subject.name, "kind": subject.kind}
        answer_json(request, {"principal": principal, "path": name.decode(), "rights": rights})
