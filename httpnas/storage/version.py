"""Which version of a file is which, and how much of it counts.

An append writes behind the end of the file itself. While it does, an *undo record* names the
version that still counts. Readers stop there. After a crash, whoever appends next cuts the file
back to it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from httpnas.storage.descriptors import owned
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


#: Finds the version that a name has now, None when there is none. On a network file system this
#: takes round trips.
Find = Callable[[], Version | None]
#: A caller's condition for a change. It is called under the name's lock with what finds the version
#: to be changed. When that version may not be changed it raises what its caller wants to see.
Check = Callable[[Find], None]


def of_stat(status: os.stat_result) -> Version:
    """Return the version that *status* shows."""
    return Version(status.st_size, status.st_mtime_ns, status.st_ino)


def committed(fd: int, records: Records) -> Version:
    """Return the latest version of the open file *fd* that is wholly there.

    A commit may begin or end between two calls. Only two equal results of fstat(2), with no undo
    record between them, prove that there was no commit.
    """
    before = os.fstat(fd)
    while True:
        undo = read_undo(fd, records)
        after = os.fstat(fd)
        if undo is not None:
            return Version(min(undo[0], after.st_size), undo[1], after.st_ino)
        if of_stat(after) == of_stat(before) and after.st_ctime_ns == before.st_ctime_ns:
            return of_stat(before)
        before = after


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
        return of_stat(status)  # what cannot be read can still be replaced
    with owned(fd):
        return committed(fd, records)


def read_undo(fd: int, records: Records) -> tuple[int, int] | None:
    """Return size and mtime of the undo record of *fd*, or None when there is none."""
    record = records.read(fd, _UNDO)
    if record is None or len(record) != _RECORD.size:
        return None  # others may write user xattrs too
    size, mtime_ns = _RECORD.unpack(record)
    return size, mtime_ns


def write_undo(fd: int, version: Version, records: Records) -> None:
    """Record that of *fd* only *version* counts."""
    records.write(fd, _UNDO, _RECORD.pack(version.size, version.mtime_ns))


def clear_undo(fd: int, records: Records) -> None:
    """Remove the undo record of *fd*: from now on all that is in the file counts."""
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
