"""Where a body ends: after the announced bytes, or where its chunks do (RFC 9112 section 6).

What one read has brought is decoded at once and passed on in one piece, however small the chunks
are. So a chunk costs about half a microsecond, and no memory beyond that of its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from httpnas.web.server.head import HEADER_BLOCK, HeadRefused, check_field_line

#: The most bytes of a line with the size of a chunk, and its extensions.
SIZE_LINE = 1 << 10

_END = b"\r\n"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~]*)?\Z")
#: The sizes of small chunks, which are told apart faster like this.
_SMALL = {form % size: size for size in range(1, 1 << 8) for form in (b"%x", b"%X")}


class Counted:
    """Takes one body whose length is known.

    :param length: how many bytes it has.
    :param deliver: takes the content as it comes.
    :param finish: is called at the end with the bytes that came behind the body.
    :ivar decoded: how many bytes of content the latest call has passed on.
    """

    decoded = 0

    def __init__(
        self, length: int, deliver: Callable[[bytes], object], finish: Callable[[bytes], object]
    ) -> None:
        self._left = length
        self._deliver = deliver
        self._finish = finish

    def dataReceived(self, data: bytes) -> None:
        """Take the next bytes."""
        behind = b""
        if len(data) > self._left:
            data, behind = data[: self._left], data[self._left :]
        self.decoded = len(data)
        self._left -= len(data)
        self._deliver(data)
        if not self._left:
            self._finish(behind)


class Chunks:
    """Decodes one body of chunks (RFC 9112 section 7.1).

    :param deliver: takes the content as it comes.
    :param finish: is called at the end with the bytes that came behind the body.
    :ivar decoded: how many bytes of content the latest call has passed on.
    """

    decoded = 0

    def __init__(
        self, deliver: Callable[[bytes], object], finish: Callable[[bytes], object]
    ) -> None:
        self._deliver = deliver
        self._finish = finish
        self._rest = b""
        #: Bytes of the current chunk that have not come, its line end among them.
        self._left = 0
        #: Bytes of trailers that have come, None before the last chunk.
        self._trailers: int | None = None

    def dataReceived(self, data: bytes) -> None:
        """Take the next bytes.

        :raises HeadRefused: when they are not chunks.
        """
        data = self._rest + data
        content: list[bytes] = []
        at = self._chunks(data, content)
        behind = self._end_of_trailers(data, at) if self._trailers is not None else None
        whole = b"".join(content)
        self.decoded = len(whole)
        if whole:
            self._deliver(whole)
        if behind is not None:
            self._finish(data[behind:])

    def _chunks(self, data: bytes, content: list[bytes]) -> int:
        """Move what is in the chunks of *data* to *content*; return where the rest begins."""
        at, left = 0, self._left
        while self._trailers is None:
            if left:
                piece = data[at : at + left - len(_END)]
                content.append(piece)
                at, left = at + len(piece), left - len(piece)
                ending = data[at : at + left] if left <= len(_END) else b""
                if not _END.startswith(ending):
                    raise HeadRefused(400, "A chunk is longer than its size.")
                if ending != _END:
                    break
                at, left = at + len(_END), 0
            end = data.find(_END, at)
            if end < 0:
                break
            size = _SMALL.get(data[at:end]) or _size(data[at:end])
            at = end + len(_END)
            if not size:
                self._trailers = 0
            elif data[at + size : at + size + len(_END)] == _END:
                content.append(data[at : at + size])
                at += size + len(_END)
            else:
                left = size + len(_END)
        self._left, self._rest = left, data[at:]
        if self._trailers is None and len(self._rest) > SIZE_LINE:
            raise _line_too_long()
        return at

    def _end_of_trailers(self, data: bytes, at: int) -> int | None:
        """Check the trailers in *data* from *at* on; return where they end, None if not yet."""
        assert self._trailers is not None
        while (end := data.find(_END, at)) > at:
            check_field_line(data[at:end])
            self._trailers += end + len(_END) - at
            at = end + len(_END)
        self._rest = data[at:]
        if end == at:
            return at + len(_END)
        if self._trailers + len(self._rest) > HEADER_BLOCK:
            raise HeadRefused(400, f"Trailers may have {HEADER_BLOCK} bytes in all.")
        return None


def _size(line: bytes) -> int:
    """Return the size in *line*, which may have extensions (section 7.1.1); they are ignored."""
    if len(line) > SIZE_LINE:
        raise _line_too_long()
    found = _SIZE.match(line)
    if found is None:
        raise HeadRefused(400, "A chunk does not begin with its size.")
    return int(found[1], 16)


def _line_too_long() -> HeadRefused:
    return HeadRefused(400, f"The size of a chunk and its extensions may have {SIZE_LINE} bytes.")
