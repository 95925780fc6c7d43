"""What a daemon is appending to, noted for whoever finds it dead.

The notes are in the daemon's lease, a slot for each append at a time. They are synced only for an
append that is staged in a file, and not taken back: who reads them looks at the file itself.
Of an append that is staged in a file and announced, they also say in which, and the inode that is
appended to: if its name leads elsewhere, it has been moved, and needs what was staged to be judged.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

_SLOT = 8192
_LENGTH = struct.Struct("<H")
_ANNOUNCED = struct.Struct("<QH")


class Note(NamedTuple):
    """What was appended to.

    :ivar name: of the file.
    :ivar inode: the file, and *staged*, the name of the temporary file for what was announced to
        be added; 0 and empty when there is none.
    """

    name: bytes
    inode: int = 0
    staged: bytes = b""


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
    def noted(self, name: bytes) -> Iterator[int]:
        """Note that the file *name* is appended to, for as long as the block or longer.

        :return: what to give to :meth:`announce`.
        """
        try:
            slot, there = self._free.pop()
        except IndexError:
            slot, there = next(self._serial), b""
        try:
            if there != name:
                self._write(slot, Note(name))
            yield slot
        finally:
            self._free.append((slot, name))

    def announce(self, slot: int, note: Note) -> None:
        """Note what is announced where something is noted already."""
        self._write(slot, note)

    def _write(self, slot: int, note: Note) -> None:
        announced = _ANNOUNCED.pack(note.inode, len(note.staged)) + note.staged
        with suppress(OSError):  # without it, the next append repairs the file
            os.pwrite(self.fd, _LENGTH.pack(len(note.name)) + note.name + announced, slot * _SLOT)


def read(fd: int) -> list[Note]:
    """Return what is noted in the open lease *fd*, nothing when it cannot be read."""
    notes = []
    with suppress(OSError):
        for at in range(0, os.fstat(fd).st_size, _SLOT):
            slot = os.pread(fd, _SLOT, at)
            if len(slot) > _LENGTH.size:
                notes.append(_decode(slot))
    return [note for note in dict.fromkeys(notes) if note.name]


def _decode(slot: bytes) -> Note:
    (length,) = _LENGTH.unpack_from(slot)
    name, rest = slot[_LENGTH.size : _LENGTH.size + length], slot[_LENGTH.size + length :]
    if len(rest) < _ANNOUNCED.size:
        return Note(name)
    inode, length = _ANNOUNCED.unpack_from(rest)
    return Note(name, inode, rest[_ANNOUNCED.size : _ANNOUNCED.size + length])
