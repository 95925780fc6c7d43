"""``/file``: the http-nas dialect, in which POST creates or replaces and PUT appends."""

from __future__ import annotations

import json
from dataclasses import replace as replace_fields
from functools import partial

from httpnas.fields.names import BadName, decode_name, split_verb
from httpnas.storage.errors import IsFolder, NameTaken, StorageError
from httpnas.storage.facts import Facts
from httpnas.storage.listing import Folder
from httpnas.storage.store import StoredFile
from httpnas.transfer import scan
from httpnas.web.downloads import send_file
from httpnas.web.exchange import Exchange, answer, conditions_of, entity_tag, write_check
from httpnas.web.listings import send_listing
from httpnas.web.problems import Kind, Problem, busy
from httpnas.web.request import Request
from httpnas.web.routing import Router
from httpnas.web.server.body import BodyTooLarge, Collected
from httpnas.web.trace import Transfer
from httpnas.web.uploads import admit, append, replace

_DOOR = b"file"
_VERBS = frozenset({b"wc", b"mv"})
_METHODS = {
    None: "DELETE, GET, HEAD, OPTIONS, POST, PUT",
    b"wc": "GET, HEAD, OPTIONS",
    b"mv": "OPTIONS, PUT",
}
_HEALTH_METHODS = "GET, HEAD, OPTIONS"
#: Bytes of the document that tells where to move to.
_MOVE = 64 << 10


class FileDoor:
    """The routes of one door.

    :param exchange: what it turns requests into operations with.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def mount(self, router: Router) -> None:
        """Add the routes to *router*."""
        add = partial(router.add, "file")
        add("/file", ["GET"], self.health, any_host=True)
        add("/file/<rest:_>", ["GET"], self.download)
        add("/file/<rest:_>", ["POST"], self.upload)
        add("/file/<rest:_>", ["PUT"], self.append)
        add("/file/<rest:_>", ["DELETE"], self.delete)
        add("/file/<rest:_>", ["OPTIONS"], self.options)
        add("/file", ["OPTIONS"], self.options)
        add("/file/<rest:_>", None, self.refuse)

    async def health(self, request: Request) -> None:
        """Tell whether the storage can be written to."""
        try:
            await self._exchange.probe.ask()
        except StorageError as error:
            raise busy(Kind.NOT_WRITABLE, f"The storage cannot be written to: {error}.") from error
        answer(request)

    async def download(self, request: Request) -> None:
        """Send a file, list a folder, or count lines."""
        verb = _name(request, None, b"wc")
        assert request.name is not None
        opened = await self._exchange.open(request.name)
        if verb:
            request.verb = "count"
            await self._count(request, opened)
        elif isinstance(opened, Folder):
            request.verb = "list"
            await send_listing(self._exchange, request, request.name, opened, _VERBS)
        else:
            await send_file(self._exchange, request, request.name, opened)

    async def _count(self, request: Request, opened: StoredFile | Folder) -> None:
        try:
            if isinstance(opened, Folder):
                raise IsFolder("a folder has no lines")
            lines = await self._lines(request, opened)
        finally:
            self._exchange.close(opened)
        answer(request, b"%d" % lines)

    async def _lines(self, request: Request, file: StoredFile) -> int:
        async def count() -> Facts:
            size = file.version.size
            disk = self._exchange.disk
            return Facts(await scan.count_lines(disk, file.fd, size, lambda: not request.gone))

        return await self._exchange.known(request, file, lambda facts: facts.lines, count)

    async def upload(self, request: Request) -> None:
        """Create or replace a file."""
        _name(request, None)
        version = await replace(self._exchange, request, request.name or b"")
        request.setHeader(b"ETag", entity_tag(version))
        answer(request)

    async def append(self, request: Request) -> None:
        """Append to a file, or move a file or folder."""
        if _name(request, None, b"mv") or _is_json(request):
            request.verb = "move"
            await self._move(request, request.name or b"")
            return
        version = await append(self._exchange, request, request.name or b"")
        request.setHeader(b"ETag", entity_tag(version))
        request.setHeader(b"Upload-Offset", b"%d" % version.size)
        answer(request)

    async def _move(self, request: Request, name: bytes) -> None:
        with self._exchange.trace.transfer(request, "move", name) as transfer:
            await self._rename(request, name, transfer)
        answer(request)

    async def _rename(self, request: Request, name: bytes, transfer: Transfer) -> None:
        exchange = self._exchange
        admit(request, None)
        conditions = conditions_of(request)
        create_only = conditions.create_only
        # Whether something may be replaced concerns the new name; the rest concerns the old one.
        check = write_check(request, replace_fields(conditions, if_none_match=None))
        await exchange.disk.run(exchange.storage.begin_move, name, check)
        if (request.body.length or 0) > _MOVE:
            raise _not_a_move()
        request.body.limit = _MOVE
        document = Collected()
        try:
            await request.body.deliver_to(document)
        except BodyTooLarge as error:
            raise _not_a_move() from error
        transfer.to = target = _target(document.bytes)
        async with exchange.turns.take(name):
            try:
                await exchange.disk.run(exchange.storage.move, name, target, check, create_only)
            except NameTaken as error:
                if create_only:
                    raise Problem(
                        Kind.ALREADY_EXISTS, "A file or folder with the new name exists already."
                    ) from error
                raise

    async def delete(self, request: Request) -> None:
        """Remove a file, or a folder with all in it."""
        _name(request, None)
        name, exchange = request.name or b"", self._exchange
        check = write_check(request, conditions_of(request))
        with exchange.trace.transfer(request, "delete", name):
            async with exchange.turns.take(name):
                aside = await exchange.disk.run(exchange.storage.remove, name, check)
        answer(request)
        if aside is not None:
            exchange.disk.chore(exchange.storage.reclaim(aside))

    async def options(self, request: Request) -> None:
        """Tell what can be done here."""
        rest = _rest(request)
        methods = _METHODS[split_verb(rest, _VERBS)[1]] if rest else _HEALTH_METHODS
        request.setHeader(b"Allow", methods.encode())
        answer(request, b"", 204)

    async def refuse(self, request: Request) -> None:
        """Refuse a method that nothing here takes."""
        _name(request)


def _rest(request: Request) -> bytes:
    # The router takes any number of slashes before the door.
    return request.path.lstrip(b"/")[len(_DOOR) :]


def _name(request: Request, *verbs: bytes | None) -> bytes | None:
    """Set the name that *request* is about, and return its verb, which must be among *verbs*."""
    rest, verb = split_verb(_rest(request), _VERBS)
    request.name = decode_name(rest)
    if verb not in verbs:
        raise Problem(
            Kind.METHOD_NOT_ALLOWED,
            "This path does not take this method; Allow lists those it takes.",
            Allow=_METHODS[verb],
        )
    return verb


def _is_json(request: Request) -> bool:
    media_type = (request.getHeader(b"Content-Type") or b"").partition(b";")[0]
    return media_type.strip().lower() == b"application/json"


def _target(document: bytes) -> bytes:
    try:
        move = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _not_a_move() from error
    path = move.get("path") if isinstance(move, dict) else None
    if not isinstance(path, str) or not path:
        raise _not_a_move()
    try:
        return decode_name(path.encode())
    except UnicodeEncodeError as error:
        raise BadName("The new name is not valid UTF-8.") from error


def _not_a_move() -> Problem:
    return Problem(
        Kind.NOT_A_MOVE,
        'A PUT of application/json moves a file and needs {"path": "new/name"}. To append JSON, '
        "send it under any other type, such as application/x-ndjson.",
    )
