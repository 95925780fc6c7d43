"""Pages for people, from the daemon's own files: ``/`` shows what is stored, ``/docs`` the API.

``/docs/problems`` is where the ``type`` of each problem document leads.
"""

from __future__ import annotations

import hashlib
import html
import re
import secrets
import time
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

from httpnas.fields.conditions import Verdict
from httpnas.fields.types import media_type
from httpnas.web import openapi
from httpnas.web.answers import answer
from httpnas.web.kinds import PAGE, Kind
from httpnas.web.request import Request
from httpnas.web.routing import Router

_HERE = Path(__file__).parent.parent / "page"
#: Nothing but the daemon's own files, and no other site's frame around them. Scripts are those that
#: the page names: stored ones have the same origin, and a proxy may have put a path before all.
_POLICY = (
    b"default-src 'none'; script-src 'nonce-NONCE'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: Swagger UI sets style attributes (its issue 3370).
_DOCS_POLICY = _POLICY.replace(b"style-src 'self'", b"style-src 'self' 'unsafe-inline'")
_CODE = re.compile(r"`([^`]+)`")


class Pages:
    """The routes of files that are part of the daemon; all are read when they are mounted."""

    def mount(self, router: Router) -> None:
        """Add the routes to *router*."""
        for path in sorted(_HERE.iterdir()):
            if path.suffix != ".html":
                _add(router, f"/page/{path.name}", path.name, path.read_bytes())
        _add(router, "/", "index.html", (_HERE / "index.html").read_bytes())
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            _add(router, f"/docs/{name}", name, (_swagger_ui() / name).read_bytes())
        _add(router, "/docs", "docs.html", (_HERE / "docs.html").read_bytes(), _DOCS_POLICY)
        _add(router, PAGE, "problems.html", _problems())
        _add(router, "/openapi.json", "openapi.json", openapi.document())


def _add(router: Router, rule: str, name: str, content: bytes, policy: bytes = _POLICY) -> None:
    kind = media_type(name.encode())
    assert kind is not None, name
    is_html = name.endswith(".html")
    etag = b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
    if is_html:
        etag = b"W/" + etag  # each answer has a nonce of its own
    mounted = time.time()

    async def page(request: Request) -> None:
        if request.path.endswith(b"/") and rule != "/":  # its links are relative to it without
            leaf = request.path.rstrip(b"/").rpartition(b"/")[2]
            request.setHeader(b"Location", b"../" + leaf)
            answer(request, b"The page's own path ends in no slash.\n", 301)
            return
        request.setHeader(b"ETag", etag)
        request.setHeader(b"Cache-Control", b"no-cache")
        # Without any, the form's requests would come from the origin "null", and be refused.
        request.setHeader(b"Referrer-Policy", b"same-origin")
        if request.conditions().for_read(etag, mounted) is Verdict.NOT_MODIFIED:
            request.setResponseCode(304)  # the copy has the policy that belongs to it
            request.finish()
            return
        nonce = secrets.token_urlsafe(16).encode()
        request.setHeader(b"Content-Security-Policy", policy.replace(b"NONCE", nonce))
        body = content.replace(b"<script ", b'<script nonce="%s" ' % nonce) if is_html else content
        answer(request, body, content_type=kind)

    router.add_page("page", rule, page)


def _problems() -> bytes:
    """Return the page of problems, with a section for each kind under its code."""
    template = (_HERE / "problems.html").read_text(encoding="utf-8")
    sections = "\n".join(_section(kind) for kind in Kind)
    return template.replace("<!-- a section for each kind -->", sections).encode()


def _section(kind: Kind) -> str:
    phrase = HTTPStatus(kind.status).phrase
    return (
        f'<section id="{kind.code}">\n'
        f'<h2><a href="#{kind.code}">{kind.code}</a></h2>\n'
        f'<p class="muted">{kind.status} {phrase}</p>\n'
        f"<p>{_marked_up(kind.meaning)} {_marked_up(kind.remedy)}</p>\n"
        "</section>"
    )


def _marked_up(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", html.escape(text, quote=False))


def _swagger_ui() -> Path:
    """Return where ``flask_swagger_ui`` keeps its files, without running any of it."""
    spec = find_spec("flask_swagger_ui")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "dist"
