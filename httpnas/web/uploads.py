"""Bodies on their way in: what is refused from the headers, and how the rest becomes true."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TypeVar

from httpnas.fields.digests import HASHES, expected_digests
from httpnas.storage.append import Append
from httpnas.storage.errors import NameTaken
from httpnas.storage.upload import Upload
from httpnas.storage.version import Version
from httpnas.transfer.sink import Sink
from httpnas.web.exchange import Exchange, conditions_of, write_check
from httpnas.web.multipart import Part
from httpnas.web.problems import Kind, Problem
from httpnas.web.request import Request
from httpnas.web.server.body import Body

T = TypeVar("T")


class DigestCheck:
    """Hashes a body while it streams, and compares in the end.

    :param expected: digests by algorithm, as in :data:`httpnas.fields.digests.HASHES`.
    """

    def __init__(self, expected: dict[str, bytes]) -> None:
        self.expected = expected
        self._states = {name: hashlib.new(HASHES[name], usedforsecurity=False) for name in expected}

    def update(self, chunks: Sequence[bytes]) -> None:
        """Take the next bytes of the body."""
        for state in self._states.values():
            for chunk in chunks:
                state.update(chunk)

    def verify(self) -> None:
        """Refuse the body with 400 when a digest of it is not the expected one."""
        for name, state in self._states.items():
            if state.digest() != self.expected[name]:
                raise Problem(
                    Kind.DIGEST_MISMATCH,
                    f"The {name} digest of the body is not the one announced.",
                )


def admit(request: Request, max_upload: int | None) -> None:
    """Refuse a body for what its headers say of it, and bound what comes."""
    coding = request.getHeader(b"Content-Encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise Problem(
            Kind.ENCODED_BODY,
            "Bodies are stored as they are: send it without Content-Encoding.",
            Accept_Encoding="identity",
        )
    if max_upload is not None and (request.body.length or 0) > max_upload:
        raise Problem(Kind.BODY_TOO_LARGE, f"A body may have at most {max_upload} bytes.")
    request.body.limit = max_upload


async def replace(exchange: Exchange, request: Request, name: bytes) -> Version:
    """Make the body of *request* the content of *name*."""
    admit(request, exchange.max_upload)
    digests = _digest_check(request)
    return await _replace(exchange, request, name, request.body, digests, request.body.length)


async def replace_by_part(exchange: Exchange, request: Request, name: bytes, part: Part) -> Version:
    """Make *part* of the body of *request* the content of *name*."""
    return await _replace(exchange, request, name, part, DigestCheck({}), None)


async def _replace(
    exchange: Exchange,
    request: Request,
    name: bytes,
    body: Body | Part,
    digests: DigestCheck,
    length: int | None,
) -> Version:
    conditions = conditions_of(request)
    check = write_check(request, conditions)
    with exchange.trace.transfer(request, "upload", name, lambda: body.received):
        upload = await exchange.disk.run(exchange.storage.begin_upload, name, check, length)

        def publish() -> Version:
            try:
                return upload.publish(check, conditions.create_only, digests.expected)
            except NameTaken as error:
                raise Problem(
                    Kind.ALREADY_EXISTS, "A file or folder with this name exists already."
                ) from error

        return await _store(exchange, name, body, digests, upload, publish)


async def append(exchange: Exchange, request: Request, name: bytes) -> Version:
    """Put the body of *request* behind the end of the file *name*, once for each key."""
    admit(request, exchange.max_upload)
    digests = _digest_check(request)
    expected = _offset(request.getHeader(b"Upload-Offset"))
    check = write_check(request, conditions_of(request))
    key = _key(request.getHeader(b"Idempotency-Key"))
    body = request.body
    with exchange.trace.transfer(request, "append", name, lambda: body.received):
        begun = await exchange.disk.run(
            exchange.storage.begin_append, name, check, body.length, expected, key
        )
        if isinstance(begun, Version):
            return begun
        return await _store(
            exchange, name, body, digests, begun, lambda: begun.commit(check, expected)
        )


async def _store(
    exchange: Exchange,
    name: bytes,
    body: Body | Part,
    digests: DigestCheck,
    target: Upload | Append,
    commit: Callable[[], T],
) -> T:
    """Stream *body* into *target*, then *commit* it; *target* is closed in the end."""

    def write(chunks: Sequence[bytes]) -> None:
        digests.update(chunks)
        target.write(chunks)

    def finish(rest: Sequence[bytes]) -> T:
        with closing(target):
            write(rest)
            digests.verify()
            return commit()

    sink = Sink(exchange.disk, write)
    try:
        await body.deliver_to(sink)
        rest = await sink.finish()
    except BaseException:
        await sink.abandon()
        await exchange.disk.run(target.close)
        raise
    async with exchange.turns.take(name):
        return await exchange.disk.run(finish, rest)


def _digest_check(request: Request) -> DigestCheck:
    headers = request.requestHeaders
    return DigestCheck(expected_digests(lambda field: headers.getRawHeaders(field, [])))


def _key(field: bytes | None) -> bytes | None:
    if field is not None and not 0 < len(field) <= 255:
        raise Problem(Kind.BAD_FIELD, "Idempotency-Key must have 1 to 255 bytes.")
    return field


def _offset(field: bytes | None) -> int | None:
    if field is None:
        return None
    if not field.isdigit() or len(field) > 19:
        raise Problem(Kind.BAD_FIELD, "Upload-Offset must be a number of bytes.")
    return int(field)
