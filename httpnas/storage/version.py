"""Which version of a file is which, and how much of it counts.

An append writes behind the end of the file itself. While it does, an *undo record* names the
version that still counts: readers stop there, and whoever appends next after a crash cuts the
file back to it.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

from httpnas.storage.records import Records
from httpnas.storage.root import READ

_UNDO = "undo"
_RECORD = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one content of a file from another.

    :ivar size: bytes.
    :ivar mtime_ns: time of the last change, in nanoseconds since the epoch.
    :ivar inode: inode number.
    """

    size: int
    mtime_ns: int
    inode: int

    @property
    def tag(self) -> str:
        """A token that no other content of this name has."""
        return f"{self.inode:x}-{self.size:x}-{self.mtime_ns:x}"


def of_stat(status: os.stat_result) -> Version:
    """Return the version that *status* shows."""
    return Version(status.st_size, status.st_mtime_ns, status.st_ino)


def committed(fd: int, records: Records) -> Version:
    """Return the latest version of the open file *fd* that is wholly there.

    A commit may begin or end between two looks, so only two equal looks with no record between
    them prove that there was none.
    """
    look = os.fstat(fd)
    while True:
        undo = read_undo(fd, records)
        again = os.fstat(fd)
        if undo is not None:
            return Version(min(undo[0], again.st_size), undo[1], again.st_ino)
        if of_stat(again) == of_stat(look) and again.st_ctime_ns == look.st_ctime_ns:
            return of_stat(look)
        look = again


def committed_at(folder: int, leaf: bytes, records: Records) -> Version:
    """Return the latest version of *leaf* in *folder* that is wholly there.

    :raises FileNotFoundError: when there is nothing.
    """
    status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    if not is_file(status):
        return of_stat(status)
    try:
        fd = os.open(leaf, READ | os.O_NOFOLLOW, dir_fd=folder)
    except PermissionError:
        return of_stat(status)  # what can not be read can still be replaced
    try:
        return committed(fd, records)
    finally:
        os.close(fd)


def read_undo(fd: int, records: Records) -> tuple[int, int] | None:
    """Return size and mtime of the undo record of *fd*, or None when there is none."""
    record = records.read(fd, _UNDO)
    if record is None or len(record) != _RECORD.size:
        return None  # others may write user xattrs too
    size, mtime_ns = _RECORD.unpack(record)
    return size, mtime_ns


def write_undo(fd: int, version: Version, records: Records) -> None:
    """Record that *version* is what counts of *fd*."""
    records.write(fd, _UNDO, _RECORD.pack(version.size, version.mtime_ns))


def clear_undo(fd: int, records: Records) -> None:
    """Take the undo record of *fd* away: all that is in the file counts."""
    records.remove(fd, _UNDO)


def is_file(status: os.stat_result) -> bool:
    """Tell whether *status* is that of a regular file."""
    return stat.S_ISREG(status.st_mode)


def is_folder(status: os.stat_result) -> bool:
    """Tell whether *status* is that of a folder."""
    return stat.S_ISDIR(status.st_mode)


def is_link(status: os.stat_result) -> bool:
    """Tell whether *status* is that of a symbolic link."""
    return stat.S_ISLNK(status.st_mode)
