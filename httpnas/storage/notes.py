"""What a daemon is appending to, noted for whoever finds it dead.

The notes are in the daemon's lease, a slot for each append at a time. They are synced only for an
append that is staged in a file, and not taken back: who reads them looks at the file itself.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SLOT = 8192
_LENGTH = struct.Struct("<H")


class Notes:
    """The notes of this daemon.

    :param fd: the open lease; whoever wants its notes to be durable syncs it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._serial = itertools.count()
        #: The number of each slot that is not in use, and what is in it.
        self._free: list[tuple[int, bytes]] = []

    @contextmanager
    def noted(self, name: bytes) -> Iterator[None]:
        """Note that the file *name* is appended to, for as long as the block or longer."""
        try:
            slot, there = self._free.pop()
        except IndexError:
            slot, there = next(self._serial), b""
        try:
            if there != name:
                with suppress(OSError):  # without it, the next append repairs the file
                    os.pwrite(self.fd, _LENGTH.pack(len(name)) + name, slot * _SLOT)
            yield
        finally:
            self._free.append((slot, name))


def read(fd: int) -> list[bytes]:
    """Return the names in the open lease *fd*, none when they cannot be read."""
    names = []
    with suppress(OSError):
        for at in range(0, os.fstat(fd).st_size, _SLOT):
            slot = os.pread(fd, _SLOT, at)
            if len(slot) > _LENGTH.size:
                (length,) = _LENGTH.unpack_from(slot)
                names.append(slot[_LENGTH.size : _LENGTH.size + length])
    return [name for name in dict.fromkeys(names) if name]
