"""The volume below the storage root: what it is, what is left on it, and whether it is still there.

A network file system can go and come back below a running daemon. Its errors do not always say that
it is gone: on a client that CephFS has evicted, files seem not to exist which do.

Two words are used here and below. To *verify* is to raise :exc:`StorageGone` unless something that
is open still leads to this storage; it changes nothing. To *probe* is to try whether the storage
can be written to.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NamedTuple

from httpnas.storage import mounts
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import (
    NoRoom,
    NotPermitted,
    OtherFileSystem,
    StorageFull,
    StorageGone,
    translated,
)
from httpnas.storage.format import LOCKS
from httpnas.storage.record import PAGE
from httpnas.storage.root import FOLDER, PRIVATE, Root
from httpnas.storage.workspace import Workspace

#: File systems on which opening a file whose folders are cached never waits for a network.
_LOCAL = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs"})


class Space(NamedTuple):
    """How large and how full a file system is (statvfs(3)).

    :ivar size: bytes in all; 0 when it does not count them.
    :ivar unused: bytes that hold nothing, some of which may be reserved for root.
    :ivar free: bytes that users other than root can still store.
    :ivar inodes: files and folders that it can hold in all, 0 for any number.
    :ivar free_inodes: how many of them users other than root can still make.
    """

    size: int
    unused: int
    free: int
    inodes: int
    free_inodes: int


class Volume:
    """The volume that a storage root lies on.

    :param path: the path that the root was opened by.
    """

    def __init__(self, path: str, root: Root, workspace: Workspace) -> None:
        self._path = path
        self._root = root
        self._workspace = workspace
        #: Whether it asks no network for what is in memory.
        kind = mounts.kind(root.mount.device)
        self.is_local = kind in _LOCAL
        self._is_ceph = "ceph" in kind

    def block(self) -> int:
        """Return the bytes of a block of the file system (statvfs(3)), a page at the most."""
        with translated():
            block = os.fstatvfs(self._root.fd).f_bsize
        return block if 512 <= block < PAGE and PAGE % block == 0 else PAGE

    def space(self) -> Space:
        """Return how large and how full the file system is.

        :raises StorageError: as fstatvfs(3) fails.
        """
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

        A file system without any blocks (ramfs, some in user space) does not count bytes. Then
        there is no bound.
        """
        space = self.space()
        return space.free if space.size else sys.maxsize

    def refuse_full(self, length: int | None) -> None:
        """Refuse *length* bytes (None: not known) when there is not enough space for them.

        :raises NoRoom: when there is not.
        """
        if length and length > self.free_bytes():
            raise NoRoom("not enough space left")

    def refuse_quota(self, folder: int) -> None:
        """Refuse to make something in the open *folder* whose quota keeps out what is moved there.

        CephFS moves nothing from one quota to another; the quota of a folder is that of the
        nearest one above it that has one.

        :raises OtherFileSystem: when one between the root and *folder* has a quota.
        :raises OSError: when *folder* is not there any more.
        """
        if not self._is_ceph:
            return
        at = os.dup(folder)
        try:
            while not os.path.samestat(os.fstat(at), os.fstat(self._root.fd)):
                if _has_quota(at):
                    raise OtherFileSystem("the folder has a quota of its own")
                below, at = at, os.open(b"..", FOLDER, dir_fd=at)
                os.close(below)
        finally:
            os.close(at)

    def verify(self) -> None:
        """Verify that the root and the daemon's own folder are still there.

        Called when a call has failed, which it may have done because the volume is gone.

        :raises StorageGone: when they are not.
        """
        try:
            os.fstat(self._root.fd)
        except OSError as error:
            raise StorageGone(f"the volume is gone ({error.strerror})") from error
        self._workspace.verify()

    def probe(self) -> None:
        """Write a file and remove it, to find out whether the storage can be written to.

        A full storage passes, because files can still be removed. On a network the file is synced,
        because folders and content may lie on different hosts. On a local disk a sync would wait
        for what others have written.

        :raises StorageGone: when the root's path leads elsewhere, or what is open leads nowhere.
        :raises StorageError: when it cannot be written to.
        """
        self.verify()
        with translated():
            if not os.path.samestat(os.stat(self._path), os.fstat(self._root.fd)):
                raise StorageGone("another folder stands in its place")
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._root.fd, effective_ids=True):
                raise NotPermitted("no permission")
        self._workspace.verify_lease()
        self._workspace.verify_access()
        with contextlib.suppress(StorageFull):
            self._write_something()

    def _write_something(self) -> None:
        fd, name = self._workspace.create()
        try:
            with translated(), owned(fd):
                os.write(fd, b"\n")
                if not self.is_local:
                    os.fsync(fd)
        finally:
            self._workspace.discard(name)

    def verify_same(self, root: Root) -> None:
        """Verify that *root* is the root of this storage, perhaps by another mount.

        When nothing is mounted on a folder any more it is another folder, and may be empty.

        :raises StorageGone: when it is not.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(root.fd), os.fstat(self._root.fd)):
                return
        with contextlib.suppress(OSError):
            found = os.stat(os.path.join(PRIVATE, LOCKS), dir_fd=root.fd)
            if found.st_ino == self._workspace.locks_inode:
                return
        raise StorageGone("the volume is not there")


def _has_quota(folder: int) -> bool:
    """Tell whether *folder* of a CephFS has a quota of its own."""
    for what in ("max_bytes", "max_files"):
        with contextlib.suppress(OSError):
            if int(os.getxattr(folder, f"ceph.quota.{what}")):
                return True
    return False
