"""Folders as answers: text, JSON or HTML, sent while they are being read."""

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
from httpnas.storage.listing import Entry, Folder, Order, Place
from httpnas.transfer.sender import Chained, Generated, Text
from httpnas.web.downloads import send
from httpnas.web.exchange import Exchange, answer, entity_tag, modified
from httpnas.web.problems import Problem
from httpnas.web.query import limit_of, parse_query
from httpnas.web.request import Request

#: Entries made in one call of a pool thread.
PAGE = 2000
#: Entries by size or time that are sent at most, as so many are kept while a folder is read.
_MOST = 10_000
#: As many when the client names no limit.
_SOME = 1000
_CURSOR = re.compile(r"(-?[0-9]{1,30})/([^/]+)")
_TYPES = {
    "text": b"text/plain; charset=utf-8",
    "json": b"application/json",
    "html": b"text/html; charset=utf-8",
}


async def send_listing(
    exchange: Exchange,
    request: Request,
    name: bytes,
    folder: Folder,
    verbs: frozenset[bytes] = frozenset(),
) -> None:
    """Answer *request* with what is in *folder*; closes it.

    :param verbs: of the door, which a link must not spell.
    """
    try:
        await _send(exchange, request, name, folder, verbs)
    finally:
        exchange.close(folder)


async def _send(
    exchange: Exchange,
    request: Request,
    name: bytes,
    folder: Folder,
    verbs: frozenset[bytes],
) -> None:
    kind = listing_format(request.getHeader(b"Accept"))
    request.responseHeaders.addRawHeader(b"Vary", b"Accept")
    if kind == "html" and not request.path.endswith(b"/"):
        _redirect_into(request)
        return
    page = _page(request.query, kind)
    pieces = _pieces(kind, name, folder, page, verbs)

    def make() -> bytes:
        return b"".join(islice(pieces, PAGE))

    first = b"" if request.method == b"HEAD" else await exchange.disk.run(make)
    request.setHeader(b"Content-Type", _TYPES[kind])
    request.setHeader(b"X-Content-Type-Options", b"nosniff")
    request.setHeader(b"Content-Security-Policy", b"default-src 'none'")
    if request.method == b"HEAD":
        request.finish()
    else:
        await send(exchange, request, Chained(Text(first), Generated(make)))


def _redirect_into(request: Request) -> None:
    """Make the folder's own path the base of its relative links."""
    query = b"?" + request.query if request.query else b""
    request.setHeader(b"Location", request.path + b"/" + query)
    answer(request, b"The folder's own path ends in a slash.\n", 301)


@dataclass(frozen=True, slots=True)
class _Page:
    """What a client wants to have listed.

    :ivar after: the place that it begins behind, None for the beginning.
    :ivar limit: how many entries, None for all.
    """

    order: Order
    after: Place | None
    limit: int | None

    def places(self, folder: Folder) -> Iterator[Place]:
        """Yield the places of *folder* from where the page begins, also behind its end."""
        # More than the page needs, so that names that are gone soon do not have it read anew.
        return folder.places(self.order, self.after, max(self.limit or 0, _SOME) + 1)

    def cursor(self, last: Place) -> str:
        """Return what the client says to go on behind *last*."""
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
        raise Problem(400, "sort is name, size or mtime.")
    if direction not in ("asc", "desc"):
        raise Problem(400, "order is asc or desc.")
    return Order(by, direction == "desc")


def _limit_to_keep(limit: int | None, kind: str) -> int:
    """Return how many entries are sent by size or time."""
    if limit is None and kind == "json":
        return _SOME
    # The other forms do not tell that there is more, so that their clients have to know.
    if limit is None or limit > _MOST:
        raise Problem(400, f"By size or mtime a limit is needed, of at most {_MOST} entries.")
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
    raise Problem(400, "after is what next was in the page before, of the same sort and order.")


def _pieces(
    kind: str, name: bytes, folder: Folder, page: _Page, verbs: frozenset[bytes]
) -> Iterator[bytes]:
    """Yield the pieces of a listing; the folder is read when the first is asked for."""
    places = page.places(folder)
    if kind == "text":
        yield from (place.name + b"\n" for place in islice(places, page.limit))
        return
    entries = _entries(folder, places)
    if kind == "json":
        yield from _json(name, entries, page)
    else:
        yield from _html(name, (entry for _, entry in islice(entries, page.limit)), verbs)


def _entries(folder: Folder, places: Iterator[Place]) -> Iterator[tuple[Place, Entry]]:
    """Yield what is still there of *places*."""
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
    return json.dumps(fields, ensure_ascii=False).encode()


def _html(name: bytes, entries: Iterable[Entry], verbs: frozenset[bytes]) -> Iterator[bytes]:
    title = html.escape("/" + name.decode())
    yield (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>'
        f"</head>\n<body>\n<h1>{title}</h1>\n<pre>\n"
    ).encode()
    if name:
        yield b'<a href="../">../</a>\n'
    for entry in entries:
        yield _html_entry(entry, verbs)
    yield b"</pre>\n</body>\n</html>\n"


def _html_entry(entry: Entry, verbs: frozenset[bytes]) -> bytes:
    slash = "/" if entry.is_folder else ""
    link = f"{quote_component(entry.name)}{slash}"
    if entry.name in verbs and not slash:
        link = f"%2F{link}"  # behind a literal slash it would be the verb
    size = "-" if entry.is_folder else str(entry.version.size)
    when = format_http_date(modified(entry.version)).decode()
    return (
        f'<a href="{link}">{html.escape(entry.name.decode())}{slash}</a>  {when}  {size}\n'.encode()
    )
