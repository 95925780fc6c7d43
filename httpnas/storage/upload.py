"""Writing a file that appears under its name whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from httpnas.storage import facts, version
from httpnas.storage.errors import translated
from httpnas.storage.facts import Facts, newlines
from httpnas.storage.rename import name_new
from httpnas.storage.version import Version

if TYPE_CHECKING:
    from httpnas.storage.store import Storage

#: Finds the version that a name has now, None when there is none.
Find = Callable[[], Version | None]
#: Called under the name's lock with what finds the version to be changed, which takes round trips
#: on a network file system. It raises whatever its caller wants to see when that version may not
#: be changed.
Check = Callable[[Find], None]


class Upload:
    """A file being written beside its name; :meth:`publish` puts it there.

    Made by :meth:`httpnas.storage.store.Storage.begin_upload`. Its methods are called one at a
    time, and :meth:`close` last, whatever happened before.
    """

    def __init__(self, storage: Storage, name: bytes, fd: int, temporary: bytes) -> None:
        self._storage = storage
        self._name = name
        self._fd = fd
        self._temporary = temporary
        self._lines = 0
        self._published = False

    def write(self, chunks: Sequence[bytes]) -> None:
        """Write *chunks* behind what was written before.

        :raises StorageError: when the storage does not take them.
        """
        self._lines += newlines(chunks)
        with translated():
            write_all(self._fd, chunks)

    def publish(
        self,
        check: Check,
        create_only: bool = False,
        digests: Mapping[str, bytes] | None = None,
    ) -> Version:
        """Make what was written the content of the name, and return its version.

        When this returns, content and entry are on stable storage (unless durability is off).

        :param check: decides under the name's lock whether the present version may go.
        :param create_only: never replace anything.
        :param digests: by algorithm, what is known already of what was written.
        :raises NameTaken: when something has the name and *create_only* is set.
        :raises StorageError: when it is not published, or not known to be durable.
        """
        storage = self._storage
        with translated():
            stamp(self._fd)
            written = version.of_stat(os.fstat(self._fd))
            known = Facts(self._lines, digests or {})
            storage.records.forget(written.inode)  # what a file left that others have removed
            facts.remember(self._fd, written, known, storage.records)
            storage.sync(self._fd)
            while not self._published:
                folder = storage.root.make_parent(self._name, storage.durable)
                try:
                    self._enter(folder, check, create_only)
                    storage.sync(folder)
                except FileNotFoundError:
                    storage.workspace.expect(self._temporary)
                    continue  # the folder was removed in this moment
                finally:
                    os.close(folder)
            return written

    def _enter(self, folder: int, check: Check, create_only: bool) -> None:
        leaf = os.path.basename(self._name)
        work = self._storage.workspace.fd
        with self._storage.hold((folder, leaf)):
            check(lambda: self._storage.current(folder, leaf))
            doomed = self._storage.sole_inode(folder, leaf)
            if create_only:
                name_new(work, self._temporary, folder, leaf)
            else:
                os.rename(self._temporary, leaf, src_dir_fd=work, dst_dir_fd=folder)
            if doomed is not None:
                self._storage.records.forget(doomed)
        self._published = True

    def close(self) -> None:
        """Give the descriptor back; what was not published is gone."""
        try:
            os.close(self._fd)
        finally:
            if not self._published:
                self._storage.workspace.discard(self._temporary)


def write_all(fd: int, chunks: Sequence[bytes], offset: int | None = None) -> None:
    """Write *chunks* to *fd*, at its position or at *offset*, however often that takes."""
    views = [memoryview(chunk) for chunk in chunks if chunk]
    while views:
        batch = views[:_IOV_MAX]
        if offset is None:
            written = os.writev(fd, batch)
        else:
            written = os.pwritev(fd, batch, offset)
            offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


_IOV_MAX = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024


def stamp(fd: int) -> None:
    """Set the time of change to now, in full nanoseconds.

    The kernel's own stamps may be some milliseconds coarse, too coarse to tell two versions of
    the same length apart.
    """
    now = time.time_ns()
    os.utime(fd, ns=(now, now))
