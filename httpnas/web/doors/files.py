"""``/files``: the dialect of simple-fs: forms upload, and downloads are attachments."""

from __future__ import annotations

import html
import re
from datetime import datetime
from functools import partial
from urllib.parse import quote

from httpnas.fields.digests import expected_digests
from httpnas.fields.names import BadName, check_name, decode_name, is_of_folder
from httpnas.fields.negotiation import listing_format
from httpnas.files.files import Files
from httpnas.storage.errors import IsFolder
from httpnas.storage.listing import Folder
from httpnas.storage.root import refuse_private
from httpnas.web.answers import answer, answer_json
from httpnas.web.downloads import send_file
from httpnas.web.job import RequestJob
from httpnas.web.multipart import Part, Parts, boundary_of
from httpnas.web.problems import Kind, Problem
from httpnas.web.request import Request
from httpnas.web.routing import Router
from httpnas.web.uploads import admit

_DOOR = b"files"
_METHODS = b"GET, HEAD, OPTIONS, POST"
#: What a filename in Content-Disposition should not contain: anything but ASCII, a quote or a
#: backslash, which old and new clients read differently, and a percent sign, which some decode.
_AMBIGUOUS = re.compile(r'[^ -~]|["\\%]')
#: How many characters the names in one form may have in total; the answer lists them.
_NAMES = 256 << 10
#: For browsers without JavaScript.
_ACCEPTED = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Stored</title></head>
<body>
<p>{message}</p>
<p><a href="{root}">Back</a></p>
</body>
</html>
"""


class FilesDoor:
    """The routes of one door.

    :param max_upload: bytes a form may have, None for any number.
    """

    def __init__(self, files: Files, max_upload: int | None = None) -> None:
        self._files = files
        self._max_upload = max_upload

    def mount(self, router: Router) -> None:
        """Add the routes to *router*."""
        add = partial(router.add, "files")
        for rule in ("/files", "/files/<rest:_>"):
            add(rule, ["GET"], self.download)
            add(rule, ["POST"], self.upload)
            add(rule, ["OPTIONS"], self.options)

    async def download(self, request: Request) -> None:
        """Send a file as an attachment, for saving and not for showing."""
        name = _name(request)
        async with self._files.open(RequestJob(request), name) as opened:
            if isinstance(opened, Folder):
                raise IsFolder("a folder cannot be downloaded")
            leaf = name.rpartition(b"/")[2].decode()
            request.setHeader(b"Content-Disposition", _attachment(leaf))
            await send_file(self._files, request, name, opened)

    async def upload(self, request: Request) -> None:
        """Store every file of a form, in the folder that the path names.

        When the form breaks off, the files that came whole are kept.
        """
        folder = _name(request)
        if folder:
            refuse_private(folder)
        parts = await self._begin(request, folder)
        stored: list[str] = []
        request.problem_members["stored"] = stored
        length = 0
        try:
            while (part := await parts.next()) is not None:
                if part.filename:
                    stored.append(await self._store(request, folder, part))
                    length += len(stored[-1])
                    if length > _NAMES:
                        raise Problem(
                            Kind.FORM_TOO_LARGE,
                            "The names in one form are too long in total; send fewer files.",
                        )
        finally:
            parts.abandon()
        del request.problem_members["stored"]
        if not stored:
            raise Problem(
                Kind.BAD_FORM,
                "The form has no file: send it as the field 'file', with its name.",
            )
        _accept(request, f"{', '.join(stored)} upload task submitted.")

    async def _begin(self, request: Request, folder: bytes) -> Parts:
        boundary = boundary_of(request.getHeader(b"Content-Type"))
        if boundary is None:
            raise Problem(
                Kind.NOT_A_FORM,
                "This path takes multipart/form-data; POST to /file/NAME takes any type.",
                Accept_Post="multipart/form-data",
            )
        admit(request, self._max_upload)
        if expected_digests(request.field_lines):
            raise Problem(
                Kind.DIGEST_OF_FORM,
                "The digest of a form cannot be checked: POST to /file/NAME instead.",
            )
        await self._files.expect(RequestJob(request), folder, request.body.length)
        return Parts(request.body, boundary, request.getHeader(b"User-Agent") or b"")

    async def _store(self, request: Request, folder: bytes, part: Part) -> str:
        spelled = (part.filename or "").encode()
        name = check_name(folder + b"/" + spelled)
        if name == folder or is_of_folder(spelled):
            raise BadName("A file in the form has no name, or one that ends in a slash.")
        request.name = name
        await self._files.replace(RequestJob(request), name, part, request.conditions())
        return name.decode()

    async def options(self, request: Request) -> None:
        """List the methods of this path."""
        request.setHeader(b"Allow", _METHODS)
        answer(request, b"", 204)


def _name(request: Request) -> bytes:
    """Set the name that *request* is about, and return it."""
    # The router takes any number of slashes before the door.
    request.name = decode_name(request.path.lstrip(b"/")[len(_DOOR) :])
    return request.name


def _attachment(leaf: str) -> bytes:
    """Return a Content-Disposition for the file *leaf* (RFC 6266, RFC 8187)."""
    filename = f"download_{datetime.now():%Y%m%d%H%M%S}_{leaf}"
    plain = _AMBIGUOUS.sub("_", filename)
    extended = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{extended}'.encode()


def _accept(request: Request, message: str) -> None:
    """Answer with 202, as simple-fs did before it stored the files; here they are stored."""
    if listing_format(request.getHeader(b"Accept")) == "html":
        root = "../" * (request.path.count(b"/") - 1) or "./"
        page = _ACCEPTED.format(message=html.escape(message), root=root)
        request.setHeader(b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'")
        answer(request, page.encode(), 202, b"text/html; charset=utf-8")
    else:
        answer_json(request, {"message": message}, 202)
