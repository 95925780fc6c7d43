"""Adding to the end of a file, whole or not at all.

The body is staged first: in memory while it is small, in a temporary file beyond that. So a client
that is slow or vanishes touches nothing. Then it is committed under the name's lock, at the length
that the file has by then. O_APPEND would not do, because it tears on network file systems.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from httpnas.storage import facts, idempotency, version
from httpnas.storage.content import copy, stamp, write_all
from httpnas.storage.errors import StorageError, translated
from httpnas.storage.facts import Facts, newlines
from httpnas.storage.locks import Claim
from httpnas.storage.namespace import Namespace
from httpnas.storage.root import WRITE
from httpnas.storage.version import Check, Version

#: Bytes of a body that are kept in memory before a temporary file is made for it.
IN_MEMORY = 1 << 20


class WrongOffset(StorageError):
    """The file does not have the length that the client expects.

    :ivar actual: its length in bytes.
    """

    def __init__(self, actual: int) -> None:
        super().__init__(f"the file has {actual} bytes")
        self.actual = actual


class Append:
    """A body on its way to the end of a file.

    Made by :meth:`httpnas.storage.store.Storage.begin_append`. Call its methods one at a time,
    and :meth:`close` last, whatever happened before.
    """

    def __init__(self, namespace: Namespace, name: bytes, key: bytes | None = None) -> None:
        self._namespace = namespace
        self._name = name
        self._key = key
        self._staged: list[bytes] = []
        self._length = 0
        self._lines = 0
        self._temporary: tuple[int, bytes] | None = None

    def claim(self) -> Claim:
        """Return a claim for its last step, which holds nothing yet; the caller closes it."""
        return self._namespace.claim()

    def write(self, chunks: Sequence[bytes]) -> None:
        """Stage *chunks* behind what was staged before.

        :raises StorageError: when the storage does not take them.
        """
        self._staged.extend(chunks)
        self._length += sum(map(len, chunks))
        self._lines += newlines(chunks)
        if self._length > IN_MEMORY:
            if self._temporary is None:
                self._temporary = self._namespace.workspace.create()
            with translated():
                write_all(self._temporary[0], self._staged)
            self._staged = []

    def commit(
        self, check: Check, expected: int | None = None, claim: Claim | None = None
    ) -> Version:
        """Put what was staged behind the end of the file, and return the file's new version.

        If the file has taken an append with the same key before, nothing is appended and the
        version which that one made is returned.

        :param check: decides under the name's lock whether the present version may be changed. It
            is asked again when all is written, just before that becomes true.
        :param expected: the length in bytes that the file must have.
        :param claim: takes the locks; without one, they are waited for in this thread.
        :raises WrongOffset: when it has another one.
        :raises NoSuchFile: when the file is not there any more.
        :raises StorageError: when nothing was appended.
        :raises Locked: when it is to be called again, with the same claim.
        """
        with translated():
            return self._namespace.patiently(
                lambda claim: self._commit(check, expected, claim), claim
            )

    def _commit(self, check: Check, expected: int | None, claim: Claim) -> Version:
        namespace = self._namespace
        with (
            namespace.held_file(self._name, WRITE, claim) as fd,
            namespace.timed("append_commit"),
        ):
            present = self._recover(fd)
            if self._key is not None:
                done = idempotency.outcome(fd, self._key, present, namespace.records)
                if done is not None:
                    return done
            check(lambda: present)
            if expected is not None and expected != present.size:
                raise WrongOffset(present.size)
            return self._extend(fd, present, check)

    def _recover(self, fd: int) -> Version:
        """Undo what a daemon that died in the middle of a commit has left."""
        records = self._namespace.records
        present = version.committed(fd, records)
        if version.read_undo(fd, records) is not None:
            self._restore(fd, present)
        return present

    def _restore(self, fd: int, before: Version) -> None:
        os.ftruncate(fd, before.size)
        os.utime(fd, ns=(before.mtime_ns, before.mtime_ns))
        idempotency.forget_undone(fd, before, self._namespace.records)
        self._namespace.sync(fd)
        version.clear_undo(fd, self._namespace.records)

    def _extend(self, fd: int, present: Version, check: Check) -> Version:
        if not self._length and self._key is None:
            return present
        records = self._namespace.records
        known = facts.recall(fd, present, records)
        version.write_undo(fd, present, records)
        try:
            if self._temporary is None:
                write_all(fd, self._staged, present.size)
            else:
                copy(self._temporary[0], fd, present.size, self._length)
            stamp(fd)
            extended = version.of_stat(os.fstat(fd))
            self._note(fd, present, extended, known)
            self._namespace.sync(fd)
            check(lambda: present)  # whatever took long has been done by now
            version.clear_undo(fd, records)
            # An undo record that survived a power cut would take back what was acknowledged.
            self._namespace.sync(fd)
        except Exception:
            with contextlib.suppress(OSError):
                self._restore(fd, present)
            raise
        return extended

    def _note(self, fd: int, before: Version, after: Version, known: Facts) -> None:
        """Write down what is known of *after*, for the time when the undo record is gone."""
        records = self._namespace.records
        if known.lines is not None:
            facts.remember(fd, after, Facts(known.lines + self._lines), records)
        if self._key is not None:
            idempotency.remember(fd, self._key, before, after, records)

    def close(self) -> None:
        """Close and remove the temporary file, if there is one."""
        if self._temporary is not None:
            fd, name = self._temporary
            try:
                with translated():
                    os.close(fd)
            finally:
                self._namespace.workspace.discard(name)
