"""``/file``: the dialect of http-nas: POST creates or replaces, and PUT appends."""

from __future__ import annotations

from functools import partial
from typing import Any

from httpnas.fields.names import BadName, decode_name, is_of_folder, split_verb
from httpnas.files.content import entity_tag
from httpnas.files.files import Files
from httpnas.files.points import Verb
from httpnas.storage.errors import IsFolder, NoSuchFile, StorageError
from httpnas.storage.listing import Folder
from httpnas.storage.root import refuse_private
from httpnas.transfer.watchdog import Watchdog
from httpnas.web.answers import answer
from httpnas.web.documents import json_of
from httpnas.web.downloads import send_file
from httpnas.web.job import RequestJob
from httpnas.web.listings import send_listing
from httpnas.web.problems import Kind, Problem, busy
from httpnas.web.request import Request
from httpnas.web.routing import Router
from httpnas.web.uploads import admit, append, replace

_DOOR = b"file"
_VERBS = frozenset({b"wc", b"mv"})
_METHODS = {
    None: "DELETE, GET, HEAD, OPTIONS, POST, PUT",
    b"wc": "GET, HEAD, OPTIONS",
    b"mv": "OPTIONS, PUT",
}
_HEALTH_METHODS = "GET, HEAD, OPTIONS"


class FileDoor:
    """The routes of one door.

    :param watchdog: tells whether the storage can be written to.
    :param max_upload: bytes a body may have, None for any number.
    """

    def __init__(self, files: Files, watchdog: Watchdog, max_upload: int | None = None) -> None:
        self._files = files
        self._watchdog = watchdog
        self._max_upload = max_upload

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
        """Answer whether the storage can be written to."""
        try:
            await self._watchdog.probe.ask()
        except StorageError as error:
            raise busy(Kind.NOT_WRITABLE, f"The storage cannot be written to: {error}.") from error
        answer(request)

    async def download(self, request: Request) -> None:
        """Send a file, list a folder, or count lines."""
        name, verb = _name(request, None, *_VERBS)
        if verb is None:
            await self._send(request, name)
            return
        try:
            await self._count(request, name, verb)
        except IsFolder as error:
            # No verb of GET is for folders, so it may be the name of a file in this one. The links
            # of a listing lead here, and so do the addresses that crawlers make up from names.
            try:
                await self._send(request, name + b"/" + verb)
            except NoSuchFile:
                raise error if verb == b"wc" else _not_allowed(verb) from None

    async def _count(self, request: Request, name: bytes, verb: bytes) -> None:
        if verb == b"mv":
            if await self._is_folder(request, name, Verb.COUNT):
                raise IsFolder("a folder has no verbs")
            raise _not_allowed(verb)
        request.verb = "count"
        answer(request, b"%d" % await self._files.lines(RequestJob(request), name))

    async def _send(self, request: Request, name: bytes) -> None:
        request.name, request.verb = name, "download"
        async with self._files.open(RequestJob(request), name) as opened:
            if isinstance(opened, Folder):
                request.verb = "list"
                await send_listing(self._files, request, name, opened)
            else:
                await send_file(self._files, request, name, opened)

    async def upload(self, request: Request) -> None:
        """Create or replace a file."""
        name, _ = _name(request, None)
        _refuse_what_is_no_file(request, name)
        admit(request, self._max_upload)
        version = await replace(self._files, request, name)
        request.setHeader(b"ETag", entity_tag(version))
        answer(request)

    async def append(self, request: Request) -> None:
        """Append to a file, or move a file or folder."""
        name, verb = _name(request, None, b"mv")
        if verb or _media_type(request) == b"application/json":
            request.verb = "move"
            await self._move(request, name)
            return
        _refuse_what_is_no_file(request, name)
        admit(request, self._max_upload)
        version = await append(self._files, request, name)
        request.setHeader(b"ETag", entity_tag(version))
        request.setHeader(b"Upload-Offset", b"%d" % version.size)
        answer(request)

    async def _move(self, request: Request, name: bytes) -> None:
        admit(request, None)

        async def target() -> bytes:
            return _target(await json_of(request.body, _not_a_move))

        if _is_of_folder(request):
            await self._require_folder(request, name, Verb.MOVE)
        await self._files.move(RequestJob(request), name, target, request.conditions())
        answer(request)

    async def delete(self, request: Request) -> None:
        """Remove a file, or a folder with all in it."""
        name, _ = _name(request, None)
        if _is_of_folder(request):
            await self._require_folder(request, name, Verb.DELETE)
        await self._files.remove(RequestJob(request), name, request.conditions())
        answer(request)

    async def _is_folder(self, request: Request, name: bytes, verb: Verb) -> bool:
        async with self._files.open(RequestJob(request), name, verb) as opened:
            return isinstance(opened, Folder)

    async def _require_folder(self, request: Request, name: bytes, verb: Verb) -> None:
        refuse_private(name)
        if not await self._is_folder(request, name, verb):
            raise Problem(
                Kind.NOT_A_FOLDER,
                "The name ends in a slash, so it is a folder's, but this is a file.",
            )

    async def options(self, request: Request) -> None:
        """List the methods of this path."""
        rest = _rest(request)
        methods = _METHODS[split_verb(rest, _VERBS)[1]] if rest else _HEALTH_METHODS
        request.setHeader(b"Allow", methods.encode())
        answer(request, b"", 204)

    async def refuse(self, request: Request) -> None:
        """Refuse a method that this path does not take."""
        _name(request)


def _is_of_folder(request: Request) -> bool:
    """Tell whether the name of *request* can only be a folder's, as it ends in a slash."""
    return bool(request.name) and is_of_folder(split_verb(_rest(request), _VERBS)[0])


def _refuse_what_is_no_file(request: Request, name: bytes) -> None:
    """Refuse to store a body under the name of a folder, and the envelope of a form as a file."""
    if _is_of_folder(request):
        refuse_private(name)
        raise Problem(
            Kind.IS_FOLDER,
            "The name ends in a slash, so it is a folder's. Name a file in it, or leave out the "
            "slash; folders are made as they are needed.",
        )
    if _media_type(request) == b"multipart/form-data":
        raise Problem(
            Kind.FORM_FOR_FILE,
            "This path would store the form as it is: POST it to /files/ to store the files in it, "
            "or send a file by itself, as curl -T does.",
        )


def _rest(request: Request) -> bytes:
    # The router takes any number of slashes before the door.
    return request.path.lstrip(b"/")[len(_DOOR) :]


def _name(request: Request, *verbs: bytes | None) -> tuple[bytes, bytes | None]:
    """Return the name that *request* is about, and its verb, which must be among *verbs*."""
    rest, verb = split_verb(_rest(request), _VERBS)
    request.name = name = decode_name(rest)
    if verb not in verbs:
        raise _not_allowed(verb)
    return name, verb


def _not_allowed(verb: bytes | None) -> Problem:
    return Problem(
        Kind.METHOD_NOT_ALLOWED,
        "This path does not take this method; Allow lists those it takes.",
        Allow=_METHODS[verb],
    )


def _media_type(request: Request) -> bytes:
    return (request.getHeader(b"Content-Type") or b"").partition(b";")[0].strip().lower()


def _target(move: dict[str, Any]) -> bytes:
    path = move.get("path")
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
