"""Downloads: conditions, ranges, digests and the bytes (RFC 9110, RFC 9530)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from uuid import uuid4

from httpnas.fields.conditions import Conditions, Verdict, format_http_date
from httpnas.fields.digests import format_digest, wanted_digest
from httpnas.fields.ranges import PartialContent, partial_content
from httpnas.fields.types import media_type
from httpnas.files.content import entity_tag, modified
from httpnas.files.errors import PreconditionFailed
from httpnas.files.files import Files
from httpnas.storage.store import StoredFile
from httpnas.storage.version import Version
from httpnas.transfer.sender import Chained, ConsumerGone, FileRange, Source, Text
from httpnas.web.job import RequestJob
from httpnas.web.request import Request

#: So that no browser runs stored content as if it were the daemon's own. What is shown with other
#: files needs an origin that may have them, so the sandbox leaves it its own: there is no script
#: that could use it, nor a form.
_INERT = b"sandbox; default-src 'none'"
_PLAYS = b"sandbox allow-same-origin; default-src 'none'; media-src 'self'"
_SHOWS = (
    b"sandbox allow-same-origin; default-src 'none'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; media-src 'self' data:"
)
_DOCUMENTS = (b"text/html", b"application/xhtml+xml", b"image/svg+xml")
#: Versions whose fields are remembered.
_REMEMBERED = 1024


async def send_file(files: Files, request: Request, name: bytes, file: StoredFile) -> None:
    """Answer *request* with the open *file*, in the version that was opened."""
    version = file.version
    conditions = request.conditions()
    etag = entity_tag(version)
    verdict = conditions.for_read(etag, modified(version))
    if verdict is Verdict.FAILED:
        raise PreconditionFailed("The file is not the version that the conditions ask for.")
    kind = media_type(name)
    # Not later than the answer: RFC 9110 section 8.8.2.1.
    written = min(version.mtime_ns // 10**9, int(time.time()))
    request.setHeaders(_description(etag, written, _policy(kind)))
    if verdict is Verdict.NOT_MODIFIED:
        request.setResponseCode(304)
        request.finish()
        return
    job = RequestJob(request)
    algorithm = wanted_digest(request.getHeader(b"Want-Repr-Digest"))
    if algorithm is not None:
        value = await files.digest(job, name, file, algorithm)
        request.setHeader(b"Repr-Digest", format_digest(algorithm, value))
    part = _partial(request, conditions, version, kind)
    _announce(request, version, kind, part)
    if request.method == b"HEAD":
        request.finish()
        return
    source = _source(file, part)
    async with _to_its_end(request):
        await files.download(job, name, source, request, lambda: request.sentLength)


async def send(files: Files, request: Request, source: Source) -> None:
    """Send *source* as the body of the answer, whose header fields are set.

    :raises ConsumerGone: when the client goes away before it has everything.
    """
    async with _to_its_end(request):
        await files.send(source, request)


@asynccontextmanager
async def _to_its_end(request: Request) -> AsyncIterator[None]:
    """Finish the answer that the block sends, or cut it off when the client has gone."""
    if request.gone or request.finished:
        raise ConsumerGone("the client went away before the download")
    try:
        yield
    except ConsumerGone:
        # The connection may still be on its way to the end, and this must not look like an answer.
        request.abort(request.why_gone)
        raise
    request.finish()


def _policy(kind: bytes | None) -> bytes:
    """Return what a browser may do with content of this media type, opened by itself."""
    essence = (kind or b"").partition(b";")[0]
    if essence.startswith((b"audio/", b"video/")):
        return _PLAYS
    return _SHOWS if essence in _DOCUMENTS else _INERT


@lru_cache(_REMEMBERED)
def _description(etag: bytes, written: int, policy: bytes) -> Mapping[bytes, bytes]:
    """Return the fields of every answer about one version, which nobody changes."""
    return {
        b"ETag": etag,
        b"Last-Modified": format_http_date(written),
        b"Accept-Ranges": b"bytes",
        # A copy may be kept, if it is asked for each time whether it is still the version there is.
        b"Cache-Control": b"no-cache",
        b"Content-Security-Policy": policy,
    }


def _partial(
    request: Request, conditions: Conditions, version: Version, kind: bytes | None
) -> PartialContent | None:
    field = request.getHeader(b"Range")
    if field is None or request.method == b"HEAD":
        return None
    if not conditions.range_applies(entity_tag(version)):
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
