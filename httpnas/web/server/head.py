"""The head of a request (RFC 9112 sections 2 to 6): parsed, or refused with a status.

Two expressions say what a head is, a line of a request and any number of field lines. A head that
comes whole, as nearly all do, is matched by them once and taken apart. Only of what does not match
is it found out, line by line, what is wrong and which status that has. A head that comes in pieces
is looked at line by line as it comes, so that what cannot become a head is refused at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote_from_bytes

#: The most bytes of a request line, and the most bytes and the most lines of all fields together.
REQUEST_LINE = 8 << 10
HEADER_BLOCK = 16 << 10
HEADER_LINES = 100

_END = b"\r\n"
_ASCII = bytes(range(128)).decode()
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~\x80-\xff]+) (HTTP/1\.[01])\r\n")
_FIELD_LINES = re.compile(rb"(?:" + _TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*\Z")
_FIELD_NAME = re.compile(_TOKEN + rb":")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: A target with a user: in absolute-form, of any scheme, or in authority-form.
_USER = re.compile(rb"(?!/)(?:[A-Za-z][A-Za-z0-9+.-]*:/*)?[^/?# ]*@")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")

#: What needs no escape in a URI reference, a field and a line of the log.
_IDENTITY = re.compile(rb"[A-Za-z0-9._~-]{1,128}\Z")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?\Z")


class HeadRefused(Exception):
    """A request is refused because of its head.

    :ivar status: the status code of the answer.
    :ivar detail: what is wrong with the request, for the client.
    :ivar head: what was understood of it, None when not even its first line was.
    """

    def __init__(self, status: int, detail: str, head: Head | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.head = head


class Head(NamedTuple):
    """What a head says.

    :ivar target: in ASCII. Some clients send names as they were typed; what is not ASCII is
        percent-encoded here, once.
    :ivar version: ``HTTP/1.1`` or ``HTTP/1.0``.
    :ivar fields: the values of all lines of a field, by its name in lower case.
    """

    method: bytes
    target: bytes
    version: bytes
    fields: Mapping[bytes, Sequence[bytes]]

    def lines(self, name: bytes) -> Sequence[bytes]:
        """Return the values of all field lines called *name*, which is in lower case."""
        return self.fields.get(name, ())

    @property
    def expects(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends a body."""
        return b"expect" in self.fields and self.version == b"HTTP/1.1"

    @property
    def is_persistent(self) -> bool:
        """Whether the connection persists after the request (section 9.3)."""
        options = self.fields.get(b"connection")
        if options is None:
            return self.version == b"HTTP/1.1"
        wanted = {option.strip().lower() for option in b",".join(options).split(b",")}
        if b"close" in wanted:
            return False
        return self.version == b"HTTP/1.1" or b"keep-alive" in wanted

    def check(self) -> int | None:
        """Check what its fields say together; return the length of the body, None for chunks.

        :raises HeadRefused: when it does not tell where the body ends (section 6), names no host
            (section 3.2) or expects what is not understood (RFC 9110 section 10.1.1).
        """
        length = self._length()
        hosts = self.lines(b"host")
        if len(hosts) > 1 or (self.version == b"HTTP/1.1" and not hosts):
            raise HeadRefused(400, "A request has one Host header.")
        if hosts and not _HOST.match(hosts[0]):
            raise HeadRefused(400, "The Host header names no host.")
        if any(expect.lower() != b"100-continue" for expect in self.lines(b"expect")):
            raise HeadRefused(417, "The only expectation understood is 100-continue.")
        return length

    def _length(self) -> int | None:
        lengths, codings = self.lines(b"content-length"), self.lines(b"transfer-encoding")
        if not codings and not lengths:
            return 0
        if any(coding.lower() != b"chunked" for coding in codings):
            raise HeadRefused(501, "The only transfer coding understood is chunked.")
        if len(lengths) + len(codings) > 1:
            raise HeadRefused(400, "Content-Length or Transfer-Encoding says once where it ends.")
        if codings:
            if self.version == b"HTTP/1.0":
                raise HeadRefused(400, "HTTP/1.0 has no chunked bodies.")
            return None
        if not _is_length(lengths[0]):
            raise HeadRefused(400, "Content-Length is not a length.")
        return int(lengths[0])


class HeadReader:
    """Finds the heads of one connection in the bytes that come, one after the other."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._skipped = False
        self._checked = 0
        self._lines = 0

    def take(self, buffer: bytes) -> tuple[Head | None, bytes]:
        """Return the head at the beginning of *buffer*, and what is behind it.

        The head is None while not all of it is there. One empty line before it is skipped
        (section 2.2).

        :raises HeadRefused: when it is no head, or is beyond the limits (414, 431).
        """
        if not self._skipped and buffer.startswith(_END):
            self._skipped, buffer = True, buffer[len(_END) :]
        end = buffer.find(_END + _END, max(0, self._checked - len(_END)))
        if end < 0:
            self._check_lines(buffer)
            return None, buffer
        block = buffer[: end + len(_END)]
        first = _REQUEST_LINE.match(block)
        if first is None or not self._is_good(block, first):
            self._checked = self._lines = 0
            self._check_lines(block)
            raise HeadRefused(400, "The request is not HTTP as RFC 9112 has it.")
        self._begin()
        return _parse(first, block), buffer[end + 2 * len(_END) :]

    def _is_good(self, block: bytes, first: re.Match[bytes]) -> bool:
        begin = first.end()
        return (
            begin - len(_END) <= REQUEST_LINE
            and len(block) - begin <= HEADER_BLOCK
            and block.count(_END, begin) <= HEADER_LINES
            and _FIELD_LINES.match(block, begin) is not None
            and not _USER.match(first[2])
        )

    def _check_lines(self, buffer: bytes) -> None:
        """Find the first thing that is wrong with the lines that have come."""
        while (end := buffer.find(_END, self._checked)) >= 0:
            self._check_line(buffer, end)
            self._checked, self._lines = end + len(_END), self._lines + 1
        rest = buffer[self._checked :]
        if not self._lines:
            if len(rest) > REQUEST_LINE:
                raise _too_long(in_headers=False)
        elif len(buffer) - buffer.index(_END) - len(_END) > HEADER_BLOCK:
            raise _refused(buffer, _too_long(in_headers=True))
        if b"\n" in rest:
            raise _refused(buffer, _bare_line_feed())

    def _check_line(self, buffer: bytes, end: int) -> None:
        line = buffer[self._checked : end]
        if not self._lines:
            if len(line) > REQUEST_LINE:
                raise _too_long(in_headers=False)
            if b"\n" in line:
                raise _bare_line_feed()
            first = _REQUEST_LINE.match(buffer)
            if first is None:
                raise HeadRefused(400, "The request line is not one of HTTP version 1.1 or 1.0.")
            if _USER.match(first[2]):  # it may come with a password (RFC 9110 section 4.2.4)
                raise HeadRefused(400, "The target of a request has no user.")
            return
        if self._lines > HEADER_LINES or end - buffer.index(_END) > HEADER_BLOCK:
            raise _refused(buffer, _too_long(in_headers=True))
        try:
            check_field_line(line)
        except HeadRefused as refusal:
            raise _refused(buffer, refusal) from None


def _parse(first: re.Match[bytes], block: bytes) -> Head:
    fields: dict[bytes, list[bytes]] = {}
    for line in block[first.end() : -len(_END)].split(_END):
        name, colon, value = line.partition(b":")
        if colon:
            fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    method, target, version = first.groups()
    if not target.isascii():
        target = quote_from_bytes(target, safe=_ASCII).encode()
    return Head(method, target, version, fields)


def _refused(buffer: bytes, refusal: HeadRefused) -> HeadRefused:
    """Return *refusal* with what is good in *buffer*, which begins with a good first line."""
    first = _REQUEST_LINE.match(buffer)
    refusal.head = None if first is None else _parse(first, buffer)
    return refusal


def _bare_line_feed() -> HeadRefused:
    return HeadRefused(400, "A line of the request ends in a bare line feed.")


def check_field_line(line: bytes) -> None:
    """Check a field line of a head, or of the trailers of a chunked body (section 7.1.2).

    :raises HeadRefused: when it is folded, holds a control character or has no name.
    """
    if line[0] in b" \t":
        raise HeadRefused(400, "A header line is folded.")
    if _CONTROL.search(line):
        raise HeadRefused(400, "A header line holds a control character.")
    if not _FIELD_NAME.match(line):
        raise HeadRefused(400, "A header line has no name before its colon.")


def _too_long(in_headers: bool) -> HeadRefused:
    """Return the refusal of a head beyond the limits.

    :param in_headers: whether its fields are too many or too long, not its request line.
    """
    if in_headers:
        limits = f"Headers may have {HEADER_LINES} lines and {HEADER_BLOCK} bytes in all."
        return HeadRefused(431, limits)
    return HeadRefused(414, f"A request line may have {REQUEST_LINE} bytes.")


def identity_of(lines: Callable[[bytes], Sequence[bytes]]) -> str | None:
    """Return how the client, or a proxy before it, identifies its request.

    That is a good X-Request-ID, else the trace-id of a traceparent (W3C Trace Context section
    3.2).

    :param lines: returns the values of all field lines of a name.
    :return: None when there is neither.
    """
    named = lines(b"x-request-id")
    if len(named) == 1 and _IDENTITY.match(named[0]):
        return named[0].decode()
    traced = lines(b"traceparent")
    found = _TRACEPARENT.match(traced[0]) if len(traced) == 1 else None
    return found[1].decode() if found is not None and found[1].strip(b"0") else None


def new_identity() -> str:
    """Return a random UUID (RFC 9562 section 5.4); :mod:`uuid` takes ten times as long."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _is_length(field: bytes) -> bool:
    return field.isdigit() and len(field) <= 19 and int(field) < 1 << 63
