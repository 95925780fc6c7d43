"""The head of a request, line by line: what is refused, and with which status (RFC 9112).

Twisted accepts more than is safe here, and answers everything that it refuses with 400. So these
checks come before its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from urllib.parse import quote_from_bytes

#: The most bytes of a request line, and the most bytes and the most lines of all fields together.
REQUEST_LINE = 8 << 10
HEADER_BLOCK = 16 << 10
HEADER_LINES = 100

_ASCII = bytes(range(128)).decode()
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: A request line whose target has a user: in absolute-form, of any scheme, or in authority-form.
_USER = re.compile(rb"[^ ]* (?!/)(?:[A-Za-z][A-Za-z0-9+.-]*:/*)?[^/?# ]*@")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")

#: What needs no escape in a URI reference, a field and a line of the log.
_IDENTITY = re.compile(rb"[A-Za-z0-9._~-]{1,128}\Z")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?\Z")


class HeadRefused(Exception):
    """A request is refused because of its head.

    :ivar status: the status code of the answer.
    :ivar detail: what is wrong with the request, for the client.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Head:
    """The head that one connection is reading: counts and checks its lines."""

    def __init__(self) -> None:
        self._lines = 0
        self._block = 0

    def request_line(self, line: bytes) -> bytes:
        """Return the request line with an ASCII target, and begin to count field lines.

        Some clients send names as they were typed. What is not ASCII is percent-encoded here, once.

        :raises HeadRefused: with 414 when it is too long; with 400 when its method is not ASCII, or
            its target has a user, which may come with a password (RFC 9110 section 4.2.4).
        """
        self._lines = self._block = 0
        if len(line) > REQUEST_LINE:
            raise line_too_long(in_headers=False)
        if not line.partition(b" ")[0].isascii():
            raise HeadRefused(400, "A method is a token (RFC 9110 section 5.6.2).")
        if _USER.match(line):
            raise HeadRefused(400, "The target of a request has no user.")
        return line if line.isascii() else quote_from_bytes(line, safe=_ASCII).encode()

    def header_line(self, line: bytes) -> None:
        """Check a field line, which is not empty (section 5).

        :raises HeadRefused: with 431 beyond the limits, or with 400.
        """
        self._lines += 1
        self._block += len(line) + 2
        if self._lines > HEADER_LINES or self._block > HEADER_BLOCK:
            raise line_too_long(in_headers=True)
        check_field_line(line)


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


def line_too_long(in_headers: bool) -> HeadRefused:
    """Return the refusal of a head beyond the limits.

    :param in_headers: whether its fields are too many or too long, not its request line.
    """
    if in_headers:
        limits = f"Headers may have {HEADER_LINES} lines and {HEADER_BLOCK} bytes in all."
        return HeadRefused(431, limits)
    return HeadRefused(414, f"A request line may have {REQUEST_LINE} bytes.")


def check_framing(header: bytes, value: bytes, version: bytes) -> None:
    """Check a Content-Length or Transfer-Encoding field (section 6); others pass.

    :raises HeadRefused: when it does not tell where the body ends.
    """
    if header == b"Content-Length" and not _is_length(value):
        raise HeadRefused(400, "Content-Length is not a length.")
    if header == b"Transfer-Encoding":
        if value.lower() != b"chunked":
            raise HeadRefused(501, "The only transfer coding understood is chunked.")
        if version == b"HTTP/1.0":
            raise HeadRefused(400, "HTTP/1.0 has no chunked bodies.")


def check_whole(hosts: Sequence[bytes], expects: Sequence[bytes], version: bytes) -> None:
    """Check a head that is complete (section 3.2; RFC 9110 section 10.1.1).

    :param hosts: the values of all Host lines.
    :param expects: the values of all Expect lines.
    :raises HeadRefused: when it names no host, or expects what is not understood.
    """
    if len(hosts) > 1 or (version == b"HTTP/1.1" and not hosts):
        raise HeadRefused(400, "A request has one Host header.")
    if hosts and not _HOST.match(hosts[0]):
        raise HeadRefused(400, "The Host header names no host.")
    if any(expect.lower() != b"100-continue" for expect in expects):
        raise HeadRefused(417, "The only expectation understood is 100-continue.")


def identity_of(get: Callable[[bytes, Sequence[bytes]], Sequence[bytes]]) -> str | None:
    """Return how the client, or a proxy before it, identifies its request.

    That is a good X-Request-ID, else the trace-id of a traceparent (W3C Trace Context section
    3.2).

    :param get: returns the values of all field lines of a name, or its second argument.
    :return: None when there is neither.
    """
    named = get(b"X-Request-ID", [])
    if len(named) == 1 and _IDENTITY.match(named[0]):
        return named[0].decode()
    traced = get(b"traceparent", [])
    found = _TRACEPARENT.match(traced[0]) if len(traced) == 1 else None
    return found[1].decode() if found is not None and found[1].strip(b"0") else None


def is_persistent(connection: Sequence[bytes], version: bytes) -> bool:
    """Tell whether a connection persists after a request (section 9.3).

    With HTTP/1.0 it does if the client asks for that (appendix C.2.2).

    :param connection: the values of all Connection lines.
    """
    options = {option.strip().lower() for option in b",".join(connection).split(b",")}
    return b"close" not in options and (version == b"HTTP/1.1" or b"keep-alive" in options)


def _is_length(field: bytes) -> bool:
    return field.isdigit() and len(field) <= 19 and int(field) < 1 << 63
