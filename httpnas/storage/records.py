"""Small records about a file: in its user xattrs, or in files of their own where there are none.

A user xattr (xattr(7)) belongs to the file: it is moved, removed and synced with it. On file
systems without them (NFS before 4.2, ramfs) each record is a file in the daemon's own folder, named
by inode. This is slower, because each is synced by itself, and as safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Protocol

from httpnas.storage.descriptors import owned

#: Bytes that a record may have; on ext4 all xattrs of a file share one block of 4 KiB.
LARGEST = 2048
_NONE = (errno.ENODATA, errno.ENOTSUP)


class Records(Protocol):
    """Where the records of open files are kept, by kind. Methods raise :exc:`OSError`."""

    def read(self, fd: int, kind: str) -> bytes | None:
        """Return the record, or None when there is none."""

    def write(self, fd: int, kind: str, record: bytes) -> None:
        """Make *record* the one of its kind, in one step."""

    def remove(self, fd: int, kind: str) -> None:
        """Remove the record, if there is one."""

    def forget(self, inode: int) -> None:
        """Remove all records of a file that is being removed."""


class XattrRecords:
    """Records in user xattrs, which are durable once the file has been synced."""

    def read(self, fd: int, kind: str) -> bytes | None:
        """Return the record, or None when there is none."""
        try:
            return os.getxattr(fd, f"user.httpnas.{kind}")
        except OSError as error:
            if error.errno in _NONE:
                return None
            raise

    def write(self, fd: int, kind: str, record: bytes) -> None:
        """Make *record* the one of its kind; the file's next sync makes it durable."""
        os.setxattr(fd, f"user.httpnas.{kind}", record)

    def remove(self, fd: int, kind: str) -> None:
        """Remove the record; the file's next sync makes that durable."""
        try:
            os.removexattr(fd, f"user.httpnas.{kind}")
        except OSError as error:
            if error.errno not in _NONE:
                raise

    def forget(self, inode: int) -> None:
        """Do nothing: xattrs are removed with their file."""


class FileRecords:
    """Records in files of one folder, which are durable when a call returns.

    :param owner: what keeps the folder open.
    :param folder: its descriptor.
    :param durable: whether to sync.
    """

    _KINDS = ("undo", "facts", "keys")

    def __init__(self, owner: object, folder: int, durable: bool) -> None:
        self._owner = owner
        self._folder = folder
        self._durable = durable

    def read(self, fd: int, kind: str) -> bytes | None:
        """Return the record, or None when there is none."""
        try:
            record = os.open(_file(fd, kind), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        with owned(record):
            return os.read(record, LARGEST)

    def write(self, fd: int, kind: str, record: bytes) -> None:
        """Make *record* the one of its kind: a new file replaces the old one by rename(2)."""
        name = _file(fd, kind)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with owned(os.open(f"{name}.new", flags, 0o666, dir_fd=self._folder)) as made:
            while record:
                record = record[os.write(made, record) :]
            if self._durable:
                os.fsync(made)
        os.rename(f"{name}.new", name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._sync()

    def remove(self, fd: int, kind: str) -> None:
        """Remove the record, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_file(fd, kind), dir_fd=self._folder)
            self._sync()

    def forget(self, inode: int) -> None:
        """Remove all records of a file that is being removed: its inode will be used again."""
        for kind in self._KINDS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{inode:x}.{kind}", dir_fd=self._folder)

    def _sync(self) -> None:
        if self._durable:
            os.fsync(self._folder)


def _file(fd: int, kind: str) -> str:
    return f"{os.fstat(fd).st_ino:x}.{kind}"


def has_xattrs(fd: int) -> bool:
    """Tell whether the file system of the open file *fd* keeps user xattrs."""
    try:
        os.setxattr(fd, "user.httpnas.probe", b"")
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            return False
        raise
    return True
