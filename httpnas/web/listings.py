"""Listings of folders as text, JSON or HTML, sent while the folder is read."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from httpnas.fields.conditions import format_http_date
from httpnas.fields.names import quote_component
from httpnas.fields.negotiation import listing_format
from httpnas.files.content import entity_tag, modified
from httpnas.files.files import Files
from httpnas.storage.listing import Entry, Folder, Order, Place
from httpnas.web.answers import answer
from httpnas.web.downloads import send
from httpnas.web.problems import Kind, Problem
from httpnas.web.query import limit_of, parse_query
from httpnas.web.request import Request

#: The most entries of a listing by size or time: so many are kept while the folder is read.
_MOST = 10_000
#: How many when the client gives no limit.
_SOME = 1000
_CURSOR = re.compile(r"(-?[0-9]{1,30})/([^/]+)")
#: As json.dumps(), which makes an encoder for each call that has options.
_encoded = json.JSONEncoder(ensure_ascii=False).encode
_TYPES = {
    "text": b"text/plain; charset=utf-8",
    "json": b"application/json",
    "html": b"text/html; charset=utf-8",
}


async def send_listing(files: Files, request: Request, name: bytes, folder: Folder) -> None:
    """Answer *request* with what is in the open *folder*."""
    kind = listing_format(request.getHeader(b"Accept"))
    request.vary(b"Accept")
    if kind == "html" and not request.path.endswith(b"/"):
        _redirect_into(request)
        return
    pieces = _pieces(kind, name, folder, _page(request.query, kind))
    source = None if request.method == b"HEAD" else await files.list(folder, pieces)
    request.setHeader(b"Content-Type", _TYPES[kind])
    request.setHeader(b"Cache-Control", b"no-cache")
    request.setHeader(b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'")
    if source is None:
        request.finish()
    else:
        await send(files, request, source)


def _redirect_into(request: Request) -> None:
    """Redirect to the path with a slash at its end, which relative links need as their base.

    The reference is relative: a proxy may serve all of this below a path of its own, and a path
    that begins with two slashes would name another host (RFC 3986 section 4.2).
    """
    query = b"?" + request.query if request.query else b""
    leaf = request.path.rpartition(b"/")[2]
    # A colon in a first segment would end a scheme.
    request.setHeader(b"Location", b"./" + leaf + b"/" + query)
    answer(request, b"The folder's own path ends in a slash.\n", 301)


@dataclass(frozen=True, slots=True)
class _Page:
    """The part of a listing that a client asks for.

    :ivar after: the place after which it begins, None for the beginning.
    :ivar limit: how many entries, None for all.
    """

    order: Order
    after: Place | None
    limit: int | None

    def places(self, folder: Folder) -> Iterator[Place]:
        """Yield the places of *folder* from the beginning of the page, and on after its end."""
        # More than the page needs, so that names that are gone soon do not have it read anew.
        return folder.places(self.order, self.after, max(self.limit or 0, _SOME) + 1)

    def cursor(self, last: Place) -> str:
        """Return the value of ``after`` that continues after *last*."""
        name = last.name.decode()
        return name if self.order.by == "name" else f"{last.value}/{name}"


def _page(query: bytes, kind: str) -> _Page:
    """Return the page that *query* asks for."""
    fields = parse_query(query)
    order = _order(fields.get("sort", "name"), fields.get("order", "asc"))
    limit = limit_of(fields)
    if order.by != "name":
        limit = _limit_to_keep(limit, kind)
    return _Page(order, _place(order, fields.get("after")), limit)


def _order(by: str, direction: str) -> Order:
    if by not in ("name", "size", "mtime"):
        raise Problem(Kind.BAD_QUERY, "sort must be name, size or mtime.")
    if direction not in ("asc", "desc"):
        raise Problem(Kind.BAD_QUERY, "order must be asc or desc.")
    return Order(by, direction == "desc")


def _limit_to_keep(limit: int | None, kind: str) -> int:
    """Return how many entries are sent by size or time."""
    if limit is None and kind == "json":
        return _SOME
    # The other formats cannot say that there is more, so their clients have to ask for a number.
    if limit is None or limit > _MOST:
        raise Problem(
            Kind.BAD_QUERY, f"Sorting by size or mtime needs a limit of at most {_MOST} entries."
        )
    return limit


def _place(order: Order, cursor: str | None) -> Place | None:
    """Return the place that *cursor* stands for in *order*."""
    if cursor is None:
        return None
    if order.by == "name":
        if "/" not in cursor:
            return Place(0, cursor.encode())
    elif parts := _CURSOR.fullmatch(cursor):
        return Place(int(parts[1]), parts[2].encode())
    raise Problem(
        Kind.BAD_QUERY,
        "after must be the value of next in the previous page, with the same sort and order.",
    )


def _pieces(kind: str, name: bytes, folder: Folder, page: _Page) -> Iterator[bytes]:
    """Yield the pieces of a listing. The folder is read when the first one is asked for."""
    places = page.places(folder)
    if kind == "text":
        yield from (place.name + b"\n" for place in islice(places, page.limit))
        return
    entries = _entries(folder, places)
    if kind == "json":
        yield from _json(name, entries, page)
    else:
        yield from _html(name, (entry for _, entry in islice(entries, page.limit)))


def _entries(folder: Folder, places: Iterator[Place]) -> Iterator[tuple[Place, Entry]]:
    """Yield those of *places* that still exist, each with its entry."""
    for place in places:
        entry = folder.entry(place.name)
        if entry is not None:
            yield place, entry


def _json(name: bytes, entries: Iterator[tuple[Place, Entry]], page: _Page) -> Iterator[bytes]:
    yield f'{{"path": {json.dumps(name.decode(), ensure_ascii=False)}, "entries": ['.encode()
    separator, last = b"\n", ""
    for place, entry in islice(entries, page.limit):
        yield separator + _json_entry(entry)
        separator, last = b",\n", page.cursor(place)
    following = None if next(entries, None) is None else last
    yield f'\n], "next": {json.dumps(following, ensure_ascii=False)}}}\n'.encode()


def _json_entry(entry: Entry) -> bytes:
    version = entry.version
    fields = {
        "name": entry.name.decode(),
        "type": "folder" if entry.is_folder else "file",
        "size": None if entry.is_folder else version.size,
        "mtime": modified(version),
        "etag": None if entry.is_folder else entity_tag(version).decode(),
    }
    return _encoded(fields).encode()


def _html(name: bytes, entries: Iterable[Entry]) -> Iterator[bytes]:
    title = html.escape("/" + name.decode())
    yield (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>'
        f"</head>\n<body>\n<h1>{title}</h1>\n<pre>\n"
    ).encode()
    if name:
        yield b'<a href="../">../</a>\n'
    for entry in entries:
        yield _html_entry(entry)
    yield b"</pre>\n</body>\n</html>\n"


def _html_entry(entry: Entry) -> bytes:
    slash = "/" if entry.is_folder else ""
    link = f"{quote_component(entry.name)}{slash}"
    size = "-" if entry.is_folder else str(entry.version.size)
    when = format_http_date(modified(entry.version)).decode()
    return (
        f'<a href="{link}">{html.escape(entry.name.decode())}{slash}</a>  {when}  {size}\n'.encode()
    )
