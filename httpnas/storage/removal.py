"""Removing trees for good, an entry at a time, as far as the system allows it.

What cannot be removed is told in the end, so that no space is lost without anybody knowing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

from httpnas.storage.descriptors import handed_over, owned, sole_inode
from httpnas.storage.errors import NotFreed
from httpnas.storage.root import step_inside

#: Folders that cannot be moved are emptied where they are, as long as no more lie in each other.
_DEEPEST = 200


class Removal:
    """The removing of trees.

    :param folder: descriptor of the folder that trees are set aside in.
    :param set_aside: moves an entry of an open folder to there, and returns its name there.
    :param forget: is told the inode of each file whose last name is removed; None if nobody wants
        to know.
    :ivar kept: what could not be removed, and why.
    """

    def __init__(
        self,
        folder: int,
        set_aside: Callable[[int, bytes], bytes],
        forget: Callable[[int], None] | None,
    ) -> None:
        self._folder = folder
        self._set_aside = set_aside
        self._forget = forget
        self.kept: list[tuple[bytes, OSError]] = []

    def remove(self, folder: int, entry: bytes) -> Iterator[None]:
        """Remove *entry* of the open *folder* with all in it, and yield after each step.

        Folders in it are set aside in their turn, so that deep trees take few descriptors.
        """
        pending: list[bytes] = []
        yield from self._remove(folder, entry, pending)
        while pending:
            yield from self._remove(self._folder, pending.pop(), pending)

    def verify(self) -> None:
        """Tell of what was kept.

        :raises NotFreed: when something was.
        """
        if self.kept:
            entry, error = self.kept[0]
            raise NotFreed(
                f"{len(self.kept)} entries of what was removed cannot be freed, and stay in "
                f".httpnas (the first is {os.fsdecode(entry)!r}: {error.strerror})"
            )

    def _remove(
        self, folder: int, entry: bytes, pending: list[bytes], depth: int = 0
    ) -> Iterator[None]:
        try:
            if not self._unlinked(folder, entry):
                with owned(_enter(folder, entry)) as inner:
                    for below in map(os.fsencode, os.listdir(inner)):
                        try:
                            if not self._unlinked(inner, below):
                                pending.append(self._set_aside(inner, below))
                        except OSError:
                            if depth == _DEEPEST:
                                raise
                            # Only where it is, it may be removed: it is read-only, or a quota or
                            # a layer keeps it from being moved.
                            yield from self._remove(inner, below, pending, depth + 1)
                        yield
                os.rmdir(entry, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            try:
                os.rmdir(entry, dir_fd=folder)  # which needs no right to look into it
            except OSError:
                if error.errno != errno.ENOTEMPTY or not self.kept:
                    self.kept.append((entry, error))
        yield

    def _unlinked(self, folder: int, entry: bytes) -> bool:
        """Unlink *entry*, or return False because it is a folder."""
        forget = self._forget
        with nullcontext() if forget is None else sole_inode(folder, entry) as doomed:
            try:
                os.unlink(entry, dir_fd=folder)
            except IsADirectoryError:
                return False
            if forget is not None and doomed is not None:
                forget(doomed)
        return True


def _enter(folder: int, entry: bytes) -> int:
    """Open the folder *entry*, in which we may then remove entries if it is ours."""
    try:
        fd = step_inside(folder, entry)
    except PermissionError:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with owned(os.open(entry, flags, dir_fd=folder)) as path:
            os.chmod(f"/proc/self/fd/{path}", 0o700)
        fd = step_inside(folder, entry)
    with handed_over(fd):
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            with suppress(PermissionError):
                os.fchmod(fd, stat.S_IRWXU)
        return fd
