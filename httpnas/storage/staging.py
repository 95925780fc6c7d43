"""A body on its way to the end of a file: staged first, so that a slow client touches nothing.

It is kept in memory while it is small, and in a temporary file beyond that.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack

from httpnas.storage.content import write_all
from httpnas.storage.errors import translated
from httpnas.storage.facts import newlines
from httpnas.storage.namespace import Namespace
from httpnas.storage.version import Check


class Staging:
    """A body on its way to the end of a file.

    Made by :meth:`httpnas.storage.store.Storage.begin_append`. Call its methods one at a time,
    and :meth:`close` last, whatever happened before.

    :param check: decides under the file's lock whether the present version may be changed. It is
        asked again when all is written, just before that becomes true.
    :param expected: the length in bytes that the file must have.
    :param key: tells this append from all others, so that it is done once if it comes twice.
    :ivar length: bytes that are staged.
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
        self._name = name
        self.check = check
        self.expected = expected
        self.hashed = None if key is None else hashed(key)
        self.chunks: list[bytes] = []
        self.length = 0
        self.lines = 0
        self.checksum = 0
        self.staged: tuple[int, bytes] | None = None
        self.repeats = False
        self._is_synced = False
        self._ending = ExitStack()

    def write(self, chunks: Sequence[bytes]) -> None:
        """Stage *chunks* behind what was staged before.

        :raises StorageError: when the storage does not take them.
        """
        self.chunks.extend(chunks)
        self.length += sum(map(len, chunks))
        self.lines += newlines(chunks)
        if self.length > self._namespace.in_memory:
            if self.staged is None:
                self.staged = self._namespace.workspace.create()
            for chunk in self.chunks:
                self.checksum = zlib.crc32(chunk, self.checksum)
            with translated():
                write_all(self.staged[0], self.chunks)
            self.chunks = []

    def sync(self) -> None:
        """Bring what is staged in a file to stable storage, so that no lock is held for that.

        So is the note of what it is for: after a power cut, it is needed until that is repaired.
        """
        if self.staged is not None and not self._is_synced:
            notes = self._namespace.workspace.notes
            with translated():
                self._ending.enter_context(notes.noted(self._name))
                self._namespace.sync(notes.fd)
                self._namespace.sync(self.staged[0])
            self._is_synced = True

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
