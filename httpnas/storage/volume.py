"""The volume below the storage root: what it is, what is left on it, and whether it is still there.

A network file system can go and come back below a running daemon. What is gone does not always say
so: a client that CephFS has evicted answers that files do not exist which do.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NamedTuple

from httpnas.storage.errors import NoRoom, NotPermitted, StorageFull, StorageGone, translated
from httpnas.storage.root import PRIVATE, Root
from httpnas.storage.workspace import Workspace

#: File systems on which opening a file whose folders are cached never waits for a network.
_LOCAL = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs"})


class Space(NamedTuple):
    """What a file system has (statvfs(3)), in bytes and numbers of files.

    :ivar size: bytes in all; 0 when it does not count them.
    :ivar unused: bytes that nobody has stored anything in, some of them kept for root.
    :ivar free: bytes that others than root can still store.
    :ivar inodes: files and folders that it can hold in all, 0 for any number.
    :ivar free_inodes: how many of them others than root can still make.
    """

    size: int
    unused: int
    free: int
    inodes: int
    free_inodes: int


class Volume:
    """The volume that a storage root lies on.

    :param path: where the root was found.
    """

    def __init__(self, path: str, root: Root, workspace: Workspace) -> None:
        self._path = path
        self._root = root
        self._workspace = workspace
        #: Whether no network is asked for what is in memory.
        self.is_local = _kind(root.device) in _LOCAL

    def space(self) -> Space:
        """Return how much there is of what files take."""
        with translated():
            status = os.fstatvfs(self._root.fd)
        unit = status.f_frsize
        return Space(
            status.f_blocks * unit,
            status.f_bfree * unit,
            status.f_bavail * unit,
            status.f_files,
            status.f_favail,
        )

    def free_bytes(self) -> int:
        """Return how many bytes an unprivileged user can still store.

        A file system without any blocks (ramfs, some in user space) does not count them, and
        takes what it takes.
        """
        space = self.space()
        return space.free if space.size else sys.maxsize

    def refuse_full(self, length: int | None) -> None:
        """Refuse *length* bytes, if that is known, which can not be stored.

        :raises NoRoom:
        """
        if length and length > self.free_bytes():
            raise NoRoom("not enough space left")

    def verify(self) -> None:
        """See whether what has just failed may have failed because the volume is gone.

        :raises StorageGone: when it is.
        """
        try:
            os.fstat(self._root.fd)
        except OSError as error:
            raise StorageGone(f"the volume is gone ({error.strerror})") from error
        self._workspace.verify()

    def probe(self) -> None:
        """Write a file and remove it, to see whether the storage can be written to.

        A full one can: it takes what makes room. On a network the file is synced, as folders and
        content may lie on different hosts; on a local disk that would wait for what others have
        written.

        :raises StorageGone: when the root's path leads elsewhere, or what is open leads nowhere.
        :raises StorageError: when it can not be written to.
        """
        self.verify()
        with translated():
            if not os.path.samestat(os.stat(self._path), os.fstat(self._root.fd)):
                raise StorageGone("another folder stands in its place")
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._root.fd, effective_ids=True):
                raise NotPermitted("no permission")
        self._workspace.verify_lease()
        with contextlib.suppress(StorageFull):
            self._write_something()

    def _write_something(self) -> None:
        fd, name = self._workspace.create()
        try:
            with translated():
                try:
                    os.write(fd, b"\n")
                    if not self.is_local:
                        os.fsync(fd)
                finally:
                    os.close(fd)
        finally:
            self._workspace.discard(name)

    def expect(self, root: Root) -> None:
        """See that *root* is that of this storage, on whatever mount.

        A folder on which nothing is mounted any more is another one, and may be empty.

        :raises StorageGone: when it is not.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(root.fd), os.fstat(self._root.fd)):
                return
        with contextlib.suppress(OSError):
            found = os.stat(os.path.join(PRIVATE, b"locks"), dir_fd=root.fd)
            if found.st_ino == self._workspace.locks_inode:
                return
        raise StorageGone("the volume is not there")


def _kind(device: int) -> str:
    """Return the name of a file system (proc(5), mountinfo), empty when it is not known."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mountinfo:
            for line in mountinfo:
                fields = line.split()
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1]
    except OSError:
        pass
    return ""
