"""Byte ranges of a file: which bytes a Range asks for, and the frame they are sent in.

RFC 9110 section 14. A Range is a wish: whenever keeping to it would cost more than the whole
file, or it makes no sense, the whole file is the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

MAX_RANGES = 16
"""Most ranges served in one answer; who asks for more gets the whole file."""

_RANGE_SPEC = re.compile(rb"([0-9]*)-([0-9]*)")


class RangeNotSatisfiable(Exception):
    """None of the ranges has a byte in the file (RFC 9110 section 15.5.17).

    :ivar size: the length of the file in bytes, for ``Content-Range: bytes */SIZE``.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has only {size} bytes.")
        self.size = size


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file, by the positions of the first and the last one, both inclusive."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class PartialContent:
    """The body of a 206 answer: each part's prefix and its bytes of the file, then the end.

    :ivar headers: the fields that describe the body (``Content-Type``, ``Content-Range``).
    :ivar parts: what to send before each range, and the range.
    :ivar closing: what to send after the last one.
    """

    headers: tuple[tuple[bytes, bytes], ...]
    parts: tuple[tuple[bytes, Range], ...]
    closing: bytes

    @property
    def length(self) -> int:
        """Length of the body in bytes, its frame included."""
        return len(self.closing) + sum(len(head) + span.length for head, span in self.parts)


def partial_content(
    field: bytes | None, size: int, content_type: bytes | None, boundary: bytes
) -> PartialContent | None:
    """Plan the answer to a Range.

    :param field: the value of the Range field, None if there is none.
    :param size: the length of the file in bytes.
    :param content_type: the type of the file, None if it has none.
    :param boundary: unlikely to occur in the file; used for more than one range only.
    :return: None if the whole file is to be sent, which is never longer than the plan.
    :raises RangeNotSatisfiable: if no range has a byte in the file.
    """
    ranges = choose_ranges(field, size)
    if ranges is None:
        return None
    if len(ranges) == 1:
        return _single(ranges[0], size, content_type)
    plan = _multipart(ranges, size, content_type, boundary)
    return plan if plan.length <= size else None


def choose_ranges(field: bytes | None, size: int) -> tuple[Range, ...] | None:
    """Find the bytes a Range asks for (RFC 9110 sections 14.1.2 and 14.2).

    :param field: the value of the Range field, None if there is none.
    :param size: the length of the file in bytes.
    :return: the satisfiable ranges in the order asked, or None if the Range is to be ignored:
        absent, invalid, of another unit, with overlaps or with too many ranges. So it is for an
        empty file: some clients ask for a range of every file, to get no more of it.
    :raises RangeNotSatisfiable: if the Range is valid, but none of its ranges is satisfiable.
    """
    specs = _range_specs(field or b"")
    if not specs or size == 0:
        return None
    ranges = [span for spec in specs if (span := _resolve(*spec, size)) is not None]
    if not ranges:
        raise RangeNotSatisfiable(size)
    if _overlap(ranges):
        return None
    return tuple(ranges)


def _range_specs(field: bytes) -> list[tuple[bytes, bytes]]:
    """The digits before and after each dash; empty if the field is to be ignored."""
    unit, _, range_set = field.partition(b"=")
    specs = [spec for part in range_set.split(b",") if (spec := part.strip(b" \t"))]
    if unit.lower() != b"bytes" or len(specs) > MAX_RANGES:
        return []
    matches = [_RANGE_SPEC.fullmatch(spec) for spec in specs]
    digits = [(_significant(m[1]), _significant(m[2])) for m in matches if m is not None]
    valid = len(digits) == len(specs) and all(_is_valid(*pair) for pair in digits)
    return digits if valid else []


def _significant(digits: bytes) -> bytes:
    return digits.lstrip(b"0") or digits[:1]


def _is_valid(first: bytes, last: bytes) -> bool:
    if first and last:
        # Compared as text: there may be thousands of digits.
        return (len(first), first) <= (len(last), last)
    return bool(first or last)


def _resolve(first: bytes, last: bytes, size: int) -> Range | None:
    if not first:
        suffix = _clamp(last, size)
        return Range(size - suffix, size - 1) if last != b"0" else None
    start = _clamp(first, size)
    if start == size:
        return None
    return Range(start, _clamp(last, size - 1) if last else size - 1)


def _clamp(digits: bytes, most: int) -> int:
    return most if len(digits) > len(str(most)) else min(int(digits), most)


def _overlap(ranges: list[Range]) -> bool:
    ascending = sorted(ranges, key=lambda span: span.first)
    return any(before.last >= after.first for before, after in pairwise(ascending))


def _content_range(span: Range, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (span.first, span.last, size)


def _described(
    span: Range, size: int, content_type: bytes | None
) -> tuple[tuple[bytes, bytes], ...]:
    described = (b"Content-Range", _content_range(span, size))
    return (described,) if content_type is None else ((b"Content-Type", content_type), described)


def _single(span: Range, size: int, content_type: bytes | None) -> PartialContent:
    return PartialContent(_described(span, size, content_type), ((b"", span),), b"")


def _multipart(
    ranges: tuple[Range, ...], size: int, content_type: bytes | None, boundary: bytes
) -> PartialContent:
    """RFC 9110 section 14.6, RFC 2046 section 5.1."""

    def head(span: Range) -> bytes:
        fields = _described(span, size, content_type)
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        return b"\r\n--%b\r\n%b\r\n" % (boundary, lines)

    return PartialContent(
        headers=((b"Content-Type", b"multipart/byteranges; boundary=" + boundary),),
        parts=tuple((head(span), span) for span in ranges),
        closing=b"\r\n--%b--\r\n" % boundary,
    )
