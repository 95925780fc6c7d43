"""Files on their way out: conditions, ranges, digests and the bytes (RFC 9110, RFC 9530)."""

from __future__ import annotations

import mimetypes
import os
from uuid import uuid4

from httpnas.fields.conditions import Conditions, Verdict, format_http_date
from httpnas.fields.digests import HASHES, format_digest, wanted_digest
from httpnas.fields.ranges import PartialContent, partial_content
from httpnas.storage.facts import Facts
from httpnas.storage.store import StoredFile
from httpnas.storage.version import Version
from httpnas.transfer import scan
from httpnas.transfer.sender import Chained, ConsumerGone, FileRange, Sender, Source, Text
from httpnas.web.exchange import Exchange, conditions_of, entity_tag, modified
from httpnas.web.problems import Problem
from httpnas.web.request import Request
from httpnas.web.server.request import Ending

#: A table of our own: the machine's would make answers depend on where the daemon runs.
_TYPES = mimetypes.MimeTypes()
_PACKED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/x-brotli",
}
#: Stored content is never run by a browser as the daemon's own.
_INERT = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"sandbox; default-src 'none'"),
)


def content_type(name: bytes) -> bytes | None:
    """Return the media type that the extension of *name* stands for, None for an unknown one."""
    # guess_type takes a URL: with a folder before it, "data:,a.png" is none.
    kind, coding = _TYPES.guess_type("./" + os.path.basename(name).decode(), strict=True)
    if coding is not None:
        kind = _PACKED.get(coding)
    if kind is None:
        return None
    return f"{kind}; charset=utf-8".encode() if kind.startswith("text/") else kind.encode()


async def send_file(exchange: Exchange, request: Request, name: bytes, file: StoredFile) -> None:
    """Answer *request* with *file* in the version it was opened at; closes it."""
    try:
        await _send(exchange, request, name, file)
    finally:
        exchange.close(file)


async def _send(exchange: Exchange, request: Request, name: bytes, file: StoredFile) -> None:
    version = file.version
    conditions = conditions_of(request)
    verdict = conditions.for_read(entity_tag(version), modified(version))
    if verdict is Verdict.FAILED:
        raise Problem(412, "The file is not the version that the conditions ask for.")
    _describe(request, version)
    if verdict is Verdict.NOT_MODIFIED:
        request.setResponseCode(304)
        request.finish()
        return
    await _add_digest(exchange, request, file)
    kind = content_type(name)
    part = _partial(request, conditions, version, kind)
    _announce(request, version, kind, part)
    if request.method == b"HEAD":
        request.finish()
        return
    with exchange.trace.transfer(request, "download", name, lambda: request.sentLength):
        await send(exchange, request, _source(file, part))


def _describe(request: Request, version: Version) -> None:
    request.setHeader(b"ETag", entity_tag(version))
    request.setHeader(b"Last-Modified", format_http_date(modified(version)))
    request.setHeader(b"Accept-Ranges", b"bytes")
    for field, value in _INERT:
        request.setHeader(field, value)


async def _add_digest(exchange: Exchange, request: Request, file: StoredFile) -> None:
    algorithm = wanted_digest(request.getHeader(b"Want-Repr-Digest"))
    if algorithm is not None:
        value = await _digest(exchange, request, file, algorithm)
        request.setHeader(b"Repr-Digest", format_digest(algorithm, value))


async def _digest(exchange: Exchange, request: Request, file: StoredFile, algorithm: str) -> bytes:
    async def compute() -> Facts:
        value = await scan.digest(
            exchange.disk,
            file.fd,
            file.version.size,
            HASHES[algorithm],
            lambda: not request.gone,
        )
        return Facts(digests={algorithm: value})

    return await exchange.known(request, file, lambda facts: facts.digests.get(algorithm), compute)


def _partial(
    request: Request, conditions: Conditions, version: Version, kind: bytes | None
) -> PartialContent | None:
    field = request.getHeader(b"Range")
    if field is None or request.method == b"HEAD":
        return None
    if not conditions.range_applies(entity_tag(version), modified(version)):
        return None
    return partial_content(field, version.size, kind, uuid4().hex.encode())


def _announce(
    request: Request, version: Version, kind: bytes | None, part: PartialContent | None
) -> None:
    if part is not None:
        request.setResponseCode(206)
        for field, value in part.headers:
            request.setHeader(field, value)
    elif kind is not None:
        request.setHeader(b"Content-Type", kind)
    length = version.size if part is None else part.length
    request.setHeader(b"Content-Length", b"%d" % length)


def _source(file: StoredFile, part: PartialContent | None) -> Source:
    if part is None:
        return FileRange(file.fd, 0, file.version.size)
    pieces: list[Source] = []
    for head, span in part.parts:
        pieces += [Text(head), FileRange(file.fd, span.first, span.length)]
    return Chained(*pieces, Text(part.closing))


async def send(exchange: Exchange, request: Request, source: Source) -> None:
    """Send *source* as the body of the answer, whose headers are set.

    :raises ConsumerGone: when the client went away before it had all of it.
    """
    if request.gone or request.finished:
        raise ConsumerGone("the client went away before the download")
    try:
        await Sender(exchange.disk).beginFileTransfer(source, request)
    except ConsumerGone:
        # The connection may still be on its way to the end, and this must not look like an answer.
        request.abort(Ending.CLIENT_GONE if request.ending is Ending.ANSWERED else request.ending)
        raise
    request.finish()
