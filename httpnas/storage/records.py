"""Where files have their records: in a user xattr, or in a file beside where there are none.

A user xattr (xattr(7)) belongs to the file: it is moved, removed and synced with it. On file
systems without them (NFS before 4.2, ramfs) the record is a file in the daemon's own folder, named
by inode. This is slower, because it is synced by itself, and as safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from httpnas.storage import statx
from httpnas.storage.descriptors import owned
from httpnas.storage.durability import sync_folder
from httpnas.storage.record import LARGEST, Record, decode, fits

_NAME = "user.httpnas"
_NONE = (errno.ENODATA, errno.ENOTSUP)

#: Opens a temporary file of any daemon, of which it is given the path in a record.
Staged = Callable[[bytes], AbstractContextManager[int | None]]
#: Tells whether an append is being made, of which it is given the path in a record.
IsAtWork = Callable[[bytes], bool]


def _nothing_staged(_: bytes) -> AbstractContextManager[int | None]:
    return nullcontext()


def _nobody(_: bytes) -> bool:
    return False


class Records(Protocol):
    """Where the records of open files are kept. Methods raise :exc:`OSError`."""

    #: Whether writing the record sets the change time of the file.
    touch_file: bool
    #: Whether all who see the file see the same change time.
    change_times: bool
    #: Opens what a record says was staged.
    staged: Staged
    #: Tells whether what a record announces is being made.
    is_at_work: IsAtWork

    def read(self, fd: int) -> Record | None:
        """Return the record of the file, or None when there is none for it."""

    def write(self, fd: int, record: Record) -> None:
        """Replace the record of the file, in one step."""

    def sync(self, fd: int) -> None:
        """Bring the file to stable storage, if durability is asked for."""

    def birth(self, fd: int) -> int:
        """Return what tells the file from earlier ones of its inode, 0 where nothing does."""

    def forget(self, inode: int) -> None:
        """Remove the record of a file that is being removed."""


class XattrRecords:
    """Records in user xattrs, which are durable once the file has been synced.

    :param durable: whether to sync.
    :param staged: opens what a record says was staged.
    :param change_times: whether all who see a file see the same change time.
    :param is_at_work: tells whether an append is being made.
    """

    touch_file = True

    def __init__(
        self,
        durable: bool = True,
        staged: Staged = _nothing_staged,
        change_times: bool = True,
        is_at_work: IsAtWork = _nobody,
    ) -> None:
        self.change_times = change_times
        self.is_at_work = is_at_work
        self._durable = durable
        self.staged = staged

    def sync(self, fd: int) -> None:
        """Bring the file to stable storage, if durability is asked for."""
        if self._durable:
            os.fsync(fd)

    def read(self, fd: int) -> Record | None:
        """Return the record of the file, or None when there is none for it."""
        try:
            record = decode(os.getxattr(fd, _NAME))
        except OSError as error:
            if error.errno in _NONE:
                return None
            raise
        # A copy of a file has the record of the file that it was copied from.
        return record if record is not None and record.inode == os.fstat(fd).st_ino else None

    def write(self, fd: int, record: Record) -> None:
        """Replace the record of the file; the file's next sync makes it durable."""
        os.setxattr(fd, _NAME, record.encode())

    def birth(self, fd: int) -> int:
        """Return 0: an inode that is used again has no xattrs of the file before."""
        return 0

    def forget(self, inode: int) -> None:
        """Do nothing: xattrs are removed with their file."""


class FileRecords:
    """Records in files of one folder, which are durable when a call returns.

    :param owner: what keeps the folder open.
    :param folder: its descriptor.
    :param durable: whether to sync.
    :param staged: opens what a record says was staged.
    :param change_times: whether all who see a file see the same change time.
    :param is_at_work: tells whether an append is being made.
    """

    touch_file = False

    def __init__(
        self,
        owner: object,
        folder: int,
        durable: bool,
        staged: Staged = _nothing_staged,
        change_times: bool = True,
        is_at_work: IsAtWork = _nobody,
    ) -> None:
        self.change_times = change_times
        self.is_at_work = is_at_work
        self.staged = staged
        self._owner = owner
        self._folder = folder
        self._durable = durable

    def read(self, fd: int) -> Record | None:
        """Return the record of the file, or None when there is none for it."""
        status = os.fstat(fd)
        inode = status.st_ino
        try:
            kept = os.open(_file(inode), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        with owned(kept):
            record = decode(os.read(kept, LARGEST))
        if record is None or record.inode != inode or record.birth != self.birth(fd):
            return None
        # Without a time of birth, only what it says itself tells the file from an earlier one.
        is_told = record.birth or record.pending is not None or fits(record, status)
        return record if is_told else None

    def write(self, fd: int, record: Record) -> None:
        """Replace the record of the file: a new one takes the place of the old by rename(2)."""
        name = _file(record.inode)
        encoded = record.encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with owned(os.open(f"{name}.new", flags, 0o666, dir_fd=self._folder)) as made:
            while encoded:
                encoded = encoded[os.write(made, encoded) :]
            if self._durable:
                os.fsync(made)
        os.rename(f"{name}.new", name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        if self._durable:
            sync_folder(self._folder)

    def sync(self, fd: int) -> None:
        """Bring the file to stable storage, if durability is asked for."""
        if self._durable:
            os.fsync(fd)

    def birth(self, fd: int) -> int:
        """Return the time of birth of the file in nanoseconds (statx(2)), 0 where there is none."""
        return statx.birth(fd)

    def forget(self, inode: int) -> None:
        """Remove the record of a file that is being removed: its inode will be used again.

        If it stays, :meth:`read` tells that it belongs to another file: what is done is no failure.
        """
        with contextlib.suppress(OSError):
            os.unlink(_file(inode), dir_fd=self._folder)


def _file(inode: int) -> str:
    return f"{inode:x}"


def has_xattrs(fd: int) -> bool:
    """Tell whether the file system of the open file *fd* keeps user xattrs."""
    try:
        os.setxattr(fd, "user.httpnas.probe", b"")
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            return False
        raise
    return True
