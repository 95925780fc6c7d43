"""A body on its way to the end of a file: staged first, so that a slow client touches nothing.

It is kept in memory while it is small, and in a temporary file beyond that.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack

from httpnas.storage import commits
from httpnas.storage.content import append_all, copy, mapped, share, write_all
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import StorageBroken, translated
from httpnas.storage.facts import newlines
from httpnas.storage.namespace import Namespace
from httpnas.storage.notes import Note
from httpnas.storage.root import READ
from httpnas.storage.version import Check


class Staging:
    """A body on its way to the end of a file.

    Made by :meth:`httpnas.storage.store.Storage.begin_append`. Call its methods one at a time,
    and :meth:`close` last, whatever happened before.

    :param check: decides under the file's lock whether the present version may be changed. It is
        asked again when all is written, just before that becomes true.
    :param expected: the length in bytes that the file must have.
    :param key: tells this append from all others, so that it is done once if it comes twice.
    :ivar name: of the file.
    :ivar length: bytes that are staged.
    :ivar staged: descriptor and name of the temporary file, None while there is none.
    :ivar repeats: whether the file had taken the append with this key before.
    """

    def __init__(
        self,
        namespace: Namespace,
        name: bytes,
        check: Check,
        expected: int | None = None,
        key: bytes | None = None,
    ) -> None:
        self._namespace = namespace
        self.name = name
        self.check = check
        self.expected = expected
        self.hashed = None if key is None else hashed(key)
        self.chunks: list[bytes] = []
        self.length = 0
        self.lines = 0
        self.checksum = 0
        self.staged: tuple[int, bytes] | None = None
        #: Where they begin in it, in bytes.
        self._start = 0
        self.repeats = False
        self._is_synced = False
        #: Of the notes of this daemon.
        self._slot = 0
        self._ending = ExitStack()

    def write(self, chunks: Sequence[bytes]) -> None:
        """Stage *chunks* behind what was staged before.

        :raises StorageError: when the storage does not take them.
        """
        self.chunks.extend(chunks)
        self.length += sum(map(len, chunks))
        self.lines += newlines(chunks)
        if self.length > self._namespace.in_memory:
            fd = self._create() if self.staged is None else self.staged[0]
            for chunk in self.chunks:
                self.checksum = zlib.crc32(chunk, self.checksum)
            with translated():
                write_all(fd, self.chunks)
            self.chunks = []

    @property
    def whole_checksum(self) -> int:
        """The CRC-32 of all that was staged."""
        return zlib.crc32(b"".join(self.chunks), self.checksum)

    def _create(self) -> int:
        fd, _ = self.staged = self._namespace.workspace.create()
        head = self._present_head()
        with translated():
            write_all(fd, [head])
        self._start = len(head)
        return fd

    def _present_head(self) -> bytes:
        """Return what the last block of the target has now.

        If the temporary file begins with that, both have the same blocks from there on.
        """
        namespace = self._namespace
        if not namespace.volume.is_local:
            return b""
        with translated(), owned(namespace.root.open(self.name, READ)) as target:
            return self._head(target, os.fstat(target).st_size)

    def _head(self, target: int, size: int) -> bytes:
        """Return what the last block of *target* has if that ends at *size*, none if it is full."""
        length = size % self._namespace.block
        return os.pread(target, length, size - length)

    def sync(self) -> None:
        """Bring what is staged in a file to stable storage, so that no lock is held for that.

        So is the note of what it is for: after a power cut, it is needed until that is repaired.
        """
        if self.staged is not None and not self._is_synced:
            notes = self._namespace.workspace.notes
            with translated():
                self._slot = self._ending.enter_context(notes.noted(self.name))
                self._namespace.sync(notes.fd)
                self._namespace.sync(self.staged[0])
            self._is_synced = True

    def note_target(self, fd: int) -> None:
        """Note that what is staged in a file is about to be announced for the file *fd*."""
        assert self.staged is not None
        note = Note(self.name, os.fstat(fd).st_ino, self.staged[1])
        self._namespace.workspace.notes.announce(self._slot, note)

    def put(self, fd: int, offset: int, alone: bool) -> int:
        """Write what is staged in a file behind the end of the file *fd*, which is at *offset*.

        :param alone: whether nobody else has that file open for writing.
        :return: where it begins now: elsewhere if others have appended before.
        :raises Contended: as :func:`httpnas.storage.content.append_all`.
        :raises OSError: when a part may have been written.
        """
        assert self.staged is not None
        staged = self.staged[0]
        if os.fstat(staged).st_size != self._start + self.length:
            raise StorageBroken("what was staged is not there any more")
        if not self._namespace.volume.is_local:
            copy(staged, self._start, fd, offset)
            return offset
        if alone and self._is_shared(staged, fd, offset):
            return offset
        return append_all(fd, mapped(staged, self._start))

    def _is_shared(self, staged: int, fd: int, offset: int) -> bool:
        """Share what is staged at the end of *fd*, or leave it as it is because that cannot be."""
        head = self._head(fd, offset)
        if len(head) != self._start or head != os.pread(staged, len(head), 0):
            return False
        try:
            share(staged, fd, offset - len(head))
        except OSError:
            there = os.fstat(fd).st_size - offset
            if there > 0 and self.begins_at(fd, offset, there):
                os.ftruncate(fd, offset)
            return False
        return True

    def begins_at(self, fd: int, offset: int, length: int) -> bool:
        """Tell whether *length* bytes of *fd* at *offset* are the first of those in the file."""
        assert self.staged is not None
        return commits.same(fd, offset, self.staged[0], self._start, length)

    def close(self) -> None:
        """Close and remove the temporary file, if there is one."""
        self._ending.close()
        if self.staged is not None:
            fd, name = self.staged
            try:
                with translated():
                    os.close(fd)
            finally:
                self._namespace.workspace.discard(name)


def hashed(key: bytes) -> bytes:
    """Return what a record has in place of an idempotency key."""
    return hashlib.blake2b(key, digest_size=8).digest()
