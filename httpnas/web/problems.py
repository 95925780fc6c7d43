"""Errors as answers: one table from errors to kinds of problems, and their documents (RFC 9457).

The detail of a problem tells the client what to do. What happened inside the server is in the log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from httpnas.access.errors import (
    IssuerAway,
    LinkRefused,
    MissingRight,
    TooManyFailures,
    TooManyPasswords,
    Unauthenticated,
)
from httpnas.fields.digests import BadDigestField
from httpnas.fields.names import BadName, NameTooLong
from httpnas.fields.ranges import RangeNotSatisfiable
from httpnas.files.errors import AlreadyThere, DigestMismatch, NoLongerWanted, PreconditionFailed
from httpnas.storage import errors
from httpnas.web.kinds import Kind
from httpnas.web.multipart import BadForm
from httpnas.web.server.application import GivenUp
from httpnas.web.server.body import BodyTooLarge, BodyTooSlow

__all__ = ["Kind", "Problem", "busy", "document", "problem_of"]

#: The media type of a problem document.
PROBLEM = b"application/problem+json"
#: Seconds after which a client may try again, for the header ``Retry-After``.
RETRY_AFTER = 5


class Problem(Exception):
    """A request is refused.

    :param kind: the cause, for programs. The answer has its status.
    :param detail: what is wrong and what to do about it, for people.
    :param headers: further headers of the answer, with ``_`` for ``-``.
    """

    def __init__(self, kind: Kind, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = kind.status
        self.detail = detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def busy(kind: Kind, detail: str, seconds: float = RETRY_AFTER) -> Problem:
    """Return the refusal of a request that may succeed *seconds* later."""
    return Problem(kind, detail, Retry_After=str(math.ceil(seconds)))


#: The first class that fits decides, so special ones come before general ones.
_TABLE: tuple[tuple[type[Exception], Kind, str], ...] = (
    (BadName, Kind.BAD_NAME, "{error}"),
    (NameTooLong, Kind.NAME_TOO_LONG, "{error}"),
    (BadDigestField, Kind.BAD_DIGEST_FIELD, "{error}"),
    (BadForm, Kind.BAD_FORM, "{error}"),
    (DigestMismatch, Kind.DIGEST_MISMATCH, "{error}"),
    (MissingRight, Kind.MISSING_RIGHT, "{error}"),
    (LinkRefused, Kind.LINK_REFUSED, "{error}"),
    (
        IssuerAway,
        Kind.ISSUER_AWAY,
        "The keys of the issuer of this token could not be fetched. Try again soon.",
    ),
    (TooManyFailures, Kind.TOO_MANY_FAILURES, "{error}"),
    (
        TooManyPasswords,
        Kind.TOO_MANY_PASSWORDS,
        "Too many passwords wait to be checked. Try again soon.",
    ),
    (AlreadyThere, Kind.ALREADY_EXISTS, "{error}"),
    (PreconditionFailed, Kind.PRECONDITION_FAILED, "{error}"),
    (NoLongerWanted, Kind.STORAGE_TIMEOUT, "{error}"),
    (GivenUp, Kind.STORAGE_TIMEOUT, "The storage does not answer. Try again soon."),
    (BodyTooSlow, Kind.BODY_TOO_SLOW, "The body made no progress for too long; send it again."),
    (BodyTooLarge, Kind.BODY_TOO_LARGE, "The body is larger than the server accepts."),
    (
        errors.KeyReused,
        Kind.KEY_REUSED,
        "Another body was appended with this Idempotency-Key. Nothing was appended now; give each "
        "append a key of its own.",
    ),
    (
        errors.FileCutShort,
        Kind.FILE_CUT_SHORT,
        "The file became shorter while it was being read. Try again.",
    ),
    (
        errors.BadNameForFileSystem,
        Kind.BAD_NAME,
        "The file system does not accept this name.",
    ),
    (errors.NoSuchFile, Kind.NO_SUCH_FILE, "There is no such file or folder."),
    (errors.IsFolder, Kind.IS_FOLDER, "This name is a folder, not a file."),
    (errors.NotAFolder, Kind.NOT_A_FOLDER, "A part of this path is a file, not a folder."),
    (errors.NameTaken, Kind.NAME_TAKEN, "The destination exists and cannot be replaced."),
    (errors.IntoItself, Kind.INTO_ITSELF, "A folder cannot be moved into itself."),
    (
        errors.OtherFileSystem,
        Kind.OTHER_FILE_SYSTEM,
        "Something is mounted there, or the file system moves nothing between these folders (one "
        "has a quota or a layer of its own). Copy the file instead.",
    ),
    (errors.Reserved, Kind.RESERVED, "This name belongs to the server and cannot be changed."),
    (
        errors.FileTooLarge,
        Kind.FILE_TOO_LARGE,
        "The file system does not accept a file of this size.",
    ),
    (
        errors.StorageFull,
        Kind.STORAGE_FULL,
        "There is not enough space left. Delete something, then try again.",
    ),
    (
        errors.NotPermitted,
        Kind.NOT_PERMITTED,
        "The server has no permission to do this: check the permissions of the storage.",
    ),
    (
        errors.OutOfDescriptors,
        Kind.OUT_OF_DESCRIPTORS,
        "The server is at its limit of open files. Try again soon.",
    ),
    (
        errors.Contended,
        Kind.CONTENDED,
        "Other clients keep changing this name. Try again soon.",
    ),
    (
        errors.StorageAway,
        Kind.STORAGE_AWAY,
        "The storage does not answer as it should. Try again soon.",
    ),
    (
        errors.StorageBroken,
        Kind.STORAGE_BROKEN,
        "The storage reported an error; the server's log names it.",
    ),
)


def problem_of(error: BaseException) -> Problem | None:
    """Return what *error* means to a client, or None if it is a bug of the server."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, errors.WrongOffset):
        return Problem(
            Kind.WRONG_OFFSET,
            f"The file has {error.actual} bytes; Upload-Offset gives another number.",
            Upload_Offset=str(error.actual),
        )
    if isinstance(error, Unauthenticated):
        challenges = ", ".join(error.challenges)
        return Problem(Kind.UNAUTHENTICATED, str(error), WWW_Authenticate=challenges)
    if isinstance(error, RangeNotSatisfiable):
        return Problem(
            Kind.RANGE_NOT_SATISFIABLE,
            f"The file has {error.size} bytes.",
            Content_Range=f"bytes */{error.size}",
        )
    if isinstance(error, OSError):
        error = errors.translate(error)
    for cause, kind, detail in _TABLE:
        if isinstance(error, cause):
            shown = detail.format(error=error)
            later = kind.status in (429, 503)
            seconds = getattr(error, "seconds", RETRY_AFTER)
            return busy(kind, shown, seconds) if later else Problem(kind, shown)
    return None


def document(
    problem: Problem, identity: str, more: Mapping[str, object] = MappingProxyType({})
) -> bytes:
    """Return a problem document (RFC 9457 section 3).

    :param identity: the identifier of the request in the log.
    :param more: further members, which RFC 9457 calls extensions (section 3.2).
    """
    members = {
        "type": problem.kind.type,
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": f"#{identity}",
        **more,
    }
    return json.dumps(members, ensure_ascii=False).encode() + b"\n"
