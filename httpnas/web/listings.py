"""Folders as answers: text, JSON or HTML, sent while they are being read."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from urllib.parse import parse_qs

from httpnas.storage.listing import Entry, Folder
from httpnas.transfer.sender import Chained, Generated, Text
from httpnas.web.conditions import format_http_date
from httpnas.web.downloads import send
from httpnas.web.exchange import Exchange, answer, entity_tag, modified
from httpnas.web.names import quote_component
from httpnas.web.negotiation import listing_format
from httpnas.web.problems import Problem
from httpnas.web.streaming import StreamingRequest

#: Entries made in one call of a pool thread.
PAGE = 2000
_TYPES = {
    "text": b"text/plain; charset=utf-8",
    "json": b"application/json",
    "html": b"text/html; charset=utf-8",
}


async def send_listing(
    exchange: Exchange,
    request: StreamingRequest,
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
    request: StreamingRequest,
    name: bytes,
    folder: Folder,
    verbs: frozenset[bytes],
) -> None:
    kind = listing_format(request.getHeader(b"Accept"))
    request.setHeader(b"Vary", b"Accept")
    if kind == "html" and not request.path.endswith(b"/"):
        _redirect_into(request)
        return
    limit, after = _page(request.query)
    pieces = _pieces(kind, name, folder, limit, after, verbs)

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


def _redirect_into(request: StreamingRequest) -> None:
    """Make the folder's own path the base of its relative links."""
    query = b"?" + request.query if request.query else b""
    request.setHeader(b"Location", request.path + b"/" + query)
    answer(request, b"The folder's own path ends in a slash.\n", 301)


def _page(query: bytes) -> tuple[int | None, bytes]:
    """Return how many entries are wanted (None: all) and the name they come after."""
    try:
        fields = parse_qs(query.decode("ascii"), errors="strict", max_num_fields=16)
    except ValueError as error:
        raise Problem(400, "The query is not made of UTF-8 fields.") from error
    limit = fields.get("limit", [None])[-1]
    after = fields.get("after", [""])[-1]
    if limit is None:
        return None, after.encode()
    if not (limit.isascii() and limit.isdigit() and 0 < len(limit) <= 9 and int(limit)):
        raise Problem(400, "limit is a number of entries, at least 1.")
    return int(limit), after.encode()


def _pieces(
    kind: str,
    name: bytes,
    folder: Folder,
    limit: int | None,
    after: bytes,
    verbs: frozenset[bytes],
) -> Iterator[bytes]:
    """Yield the pieces of a listing; the folder is read when the first is asked for."""
    names = folder.names(after)
    if kind == "text":
        yield from (name + b"\n" for name in islice(names, limit))
        return
    entries = islice(filter(None, map(folder.look, names)), limit)
    yield from _json(name, entries) if kind == "json" else _html(name, entries, verbs)


def _json(name: bytes, entries: Iterable[Entry]) -> Iterator[bytes]:
    head = f'{{"path": {json.dumps(name.decode(), ensure_ascii=False)}, "entries": ['
    separators = chain([b"\n"], iter(lambda: b",\n", None))
    yield head.encode()
    for separator, entry in zip(separators, entries, strict=False):
        yield separator + _json_entry(entry)
    yield b"\n]}\n"


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
