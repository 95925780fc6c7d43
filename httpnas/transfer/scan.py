"""Reading a whole file to count its lines or to compute a digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from httpnas.storage.errors import FileCutShort
from httpnas.storage.facts import newlines
from httpnas.transfer.disk import Runs
from httpnas.transfer.sender import ConsumerGone

_CHUNK = 256 << 10
#: Bytes read in one call, so that a huge file does not keep a pool thread for itself.
_STRETCH = 32 << 20


async def count_lines(disk: Runs, fd: int, size: int, wanted: Callable[[], bool]) -> int:
    """Return the number of newlines in the first *size* bytes of *fd*, as ``wc -l`` counts them.

    :param disk: reads, a stretch at a time.
    :param wanted: is called now and then, in any thread. When it returns False, counting ends.
    :raises ConsumerGone: when it did.
    :raises FileCutShort: when the file has fewer bytes.
    """
    lines = 0

    def feed(chunk: bytes) -> None:
        nonlocal lines
        lines += newlines([chunk])

    await _scan(disk, fd, size, feed, wanted)
    return lines


async def digest(
    disk: Runs, fd: int, size: int, algorithm: str, wanted: Callable[[], bool]
) -> bytes:
    """Return the digest of the first *size* bytes of *fd*.

    :param algorithm: a name that :mod:`hashlib` knows.
    :param disk: as in :func:`count_lines`, and *wanted* as well.
    :raises ConsumerGone:
    :raises FileCutShort: when the file has fewer bytes.
    """
    state = hashlib.new(algorithm)
    await _scan(disk, fd, size, state.update, wanted)
    return state.digest()


async def _scan(
    disk: Runs, fd: int, size: int, feed: Callable[[bytes], None], wanted: Callable[[], bool]
) -> None:
    def stretch(offset: int, end: int) -> None:
        if not wanted():
            raise ConsumerGone("nobody waits for it any more")
        while offset < end:
            chunk = os.pread(fd, min(_CHUNK, end - offset), offset)
            if not chunk:
                raise FileCutShort("the file is shorter than it was")
            feed(chunk)
            offset += len(chunk)

    for offset in range(0, size, _STRETCH):
        await disk.run(stretch, offset, min(offset + _STRETCH, size))
