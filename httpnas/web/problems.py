"""Errors as answers: one table from what went wrong to a status, and problem documents (RFC 9457).

A problem's detail tells the client what to do about it; what happened inside stays in the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING

from httpnas.fields.digests import BadDigestField
from httpnas.fields.names import BadName, NameTooLong
from httpnas.fields.ranges import RangeNotSatisfiable
from httpnas.storage import errors
from httpnas.storage.append import WrongOffset
from httpnas.web.multipart import BadForm
from httpnas.web.server.application import GivenUp
from httpnas.web.server.body import BodyTooLarge, BodyTooSlow
from httpnas.web.server.request import Ending

if TYPE_CHECKING:
    from httpnas.web.request import Request

#: Seconds after which a client may try again when the storage is away.
RETRY_AFTER = 5


class Problem(Exception):
    """A refusal that a door has decided on.

    :param status: the status code of the answer.
    :param detail: what is wrong and what to do about it, for the client.
    :param headers: more headers of the answer.
    """

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def busy(detail: str) -> Problem:
    """Return the refusal of what may be had a little later."""
    return Problem(503, detail, Retry_After=str(RETRY_AFTER))


#: Fields that tell of a file, and must not tell of a problem.
_OF_THE_FILE = (
    b"ETag",
    b"Last-Modified",
    b"Content-Range",
    b"Content-Disposition",
    b"Repr-Digest",
)

#: The first class that fits decides, so that special ones stand before general ones.
_TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (BadName, 400, "{error}"),
    (NameTooLong, 414, "{error}"),
    (BadDigestField, 400, "{error}"),
    (BadForm, 400, "{error}"),
    (BodyTooSlow, 408, "The body did not move on for too long; send it again."),
    (BodyTooLarge, 413, "The body is larger than the server takes."),
    (GivenUp, 503, "The storage does not answer. Try again soon."),
    (errors.BadNameForFileSystem, 400, "The file system does not take this name."),
    (errors.NoSuchFile, 404, "There is no such file or folder."),
    (errors.IsFolder, 409, "This name is a folder, not a file."),
    (errors.NotAFolder, 409, "On the way to this name stands a file, not a folder."),
    (errors.NameTaken, 409, "The destination exists already and can not be replaced."),
    (errors.IntoItself, 409, "A folder can not be moved into itself."),
    (errors.OtherFileSystem, 409, "Another file system is mounted there; copy the file instead."),
    (errors.Reserved, 403, "This name is the server's own and can not be changed."),
    (errors.FileTooLarge, 413, "The file system does not take a file of this size."),
    (errors.StorageFull, 507, "There is not enough space left. Delete something, then try again."),
    (errors.NotPermitted, 403, "The server may not do this here: check the storage's permissions."),
    (errors.OutOfDescriptors, 503, "The server is at its limit of open files. Try again soon."),
    (errors.Contended, 503, "Others are changing this name without pause. Try again soon."),
    (errors.StorageAway, 503, "The storage does not answer as it should. Try again soon."),
    (errors.StorageBroken, 500, "The storage reported an error; the server's log names it."),
)


def problem_of(error: BaseException) -> Problem | None:
    """Return what *error* means to a client, or None when it is an error of ours."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, WrongOffset):
        return Problem(
            409,
            f"The file has {error.actual} bytes, not as many as Upload-Offset says.",
            Upload_Offset=str(error.actual),
        )
    if isinstance(error, RangeNotSatisfiable):
        return Problem(
            416, f"The file has {error.size} bytes.", Content_Range=f"bytes */{error.size}"
        )
    if isinstance(error, OSError):
        error = errors.translate(error)
    for kind, status, detail in _TABLE:
        if isinstance(error, kind):
            shown = detail.format(error=error)
            return busy(shown) if status == 503 else Problem(status, shown)
    return None


def phrase(status: int) -> bytes:
    """Return the reason phrase of *status*."""
    return HTTPStatus(status).phrase.encode()


def document(
    problem: Problem, identity: str, told: Mapping[str, object] = MappingProxyType({})
) -> bytes:
    """Return a problem document (RFC 9457 section 3).

    :param identity: of the request, as the log has it.
    :param told: members of its own (section 3.2).
    """
    members = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": f"#{identity}",
        **told,
    }
    return json.dumps(members, ensure_ascii=False).encode() + b"\n"


def answer(request: Request, problem: Problem) -> None:
    """Answer *request* with *problem*'s document, or cut it off when its answer has begun."""
    if request.gone or request.finished:
        return
    if request.startedWriting:
        request.abort(Ending.FAILED)
        return
    for stale in _OF_THE_FILE:
        request.responseHeaders.removeHeader(stale)
    body = document(problem, request.id, request.told)
    request.setResponseCode(problem.status, phrase(problem.status))
    request.setHeader(b"Content-Type", b"application/problem+json")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    for name, value in problem.headers.items():
        request.setHeader(name.encode(), value.encode())
    request.write(body)
    request.finish()
