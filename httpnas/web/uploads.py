"""Uploads and appends: what the header fields of a request say about its body."""

from __future__ import annotations

from collections.abc import Sequence

from httpnas.fields.digests import expected_digests
from httpnas.files.files import Files
from httpnas.storage.version import Version
from httpnas.web.job import RequestJob
from httpnas.web.problems import Kind, Problem
from httpnas.web.request import Request


def admit(request: Request, max_upload: int | None) -> None:
    """Refuse a body because of its header fields, or bound its length.

    A Content-Range would be lost on who takes the body for the whole (RFC 9110 section 14.5).

    :param max_upload: how many bytes it may have, None for any number.
    """
    if request.getHeader(b"Content-Range") is not None:
        raise Problem(
            Kind.PARTIAL_BODY,
            "Content-Range does not say where a body goes. To go on behind the first N bytes of a "
            "file, PUT the rest to /file/NAME with Upload-Offset: N; HEAD tells N.",
        )
    coding = request.getHeader(b"Content-Encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise Problem(
            Kind.ENCODED_BODY,
            "Bodies are stored as they are: send it without Content-Encoding.",
            Accept_Encoding="identity",
        )
    limits = (max_upload, request.principal.most if request.principal else None)
    limit = min((each for each in limits if each is not None), default=None)
    if limit is not None and (request.body.length or 0) > limit:
        raise Problem(Kind.BODY_TOO_LARGE, f"A body may have at most {limit} bytes.")
    request.body.limit = limit


async def replace(files: Files, request: Request, name: bytes) -> Version:
    """Make the body of *request* the content of *name*."""
    digests = expected_digests(request.field_lines)
    return await files.replace(
        RequestJob(request), name, request.body, request.conditions(), digests
    )


async def append(files: Files, request: Request, name: bytes) -> Version:
    """Append the body of *request* to the file *name*, once for each key."""
    digests = expected_digests(request.field_lines)
    expected = _offset(request.getHeader(b"Upload-Offset"))
    key = _key(request.field_lines(b"Idempotency-Key"))
    return await files.append(
        RequestJob(request), name, request.body, request.conditions(), digests, expected, key
    )


def _key(lines: Sequence[bytes]) -> bytes | None:
    if len(lines) > 1:
        raise Problem(Kind.BAD_FIELD, "A request may have one Idempotency-Key.")
    if lines and not 0 < len(lines[0]) <= 255:
        raise Problem(Kind.BAD_FIELD, "Idempotency-Key must have 1 to 255 bytes.")
    return lines[0] if lines else None


def _offset(field: bytes | None) -> int | None:
    if field is None:
        return None
    if not field.isdigit() or len(field) > 19:
        raise Problem(Kind.BAD_FIELD, "Upload-Offset must be a number of bytes.")
    return int(field)
