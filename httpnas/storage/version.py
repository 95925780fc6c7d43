"""Which version of a file is which."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one content of a file from another.

    :ivar size: bytes.
    :ivar mtime_ns: time of the last change, in nanoseconds since the epoch.
    :ivar inode: inode number.
    :ivar stamp: tells versions of one inode apart: a number of ours that only grows, or the
        *mtime_ns* of a version that others have made.
    :ivar foreign_ctime_ns: the change time of a version that others have made, which no program
        can set back; None for a version of ours.
    """

    size: int
    mtime_ns: int = field(compare=False)
    inode: int
    stamp: int
    foreign_ctime_ns: int | None = None

    @property
    def tag(self) -> str:
        """A token that no other content of this name has."""
        ours = f"{self.inode:x}-{self.size:x}-{self.stamp & _64:x}"
        foreign = self.foreign_ctime_ns
        return ours if foreign is None else f"{ours}-{foreign & _64:x}"


#: Finds the version that a name has now, None when there is none. On a network file system this
#: takes round trips.
Find = Callable[[], Version | None]
#: A caller's condition for a change. It is called under the name's lock with what finds the version
#: to be changed. When that version may not be changed it raises what its caller wants to see.
Check = Callable[[Find], None]


def of_stat(status: os.stat_result) -> Version:
    """Return the version that *status* shows, as one that others have made."""
    mtime_ns = status.st_mtime_ns
    return Version(status.st_size, mtime_ns, status.st_ino, mtime_ns, status.st_ctime_ns)


def is_file(status: os.stat_result) -> bool:
    """Tell whether *status* is that of a regular file."""
    return stat.S_ISREG(status.st_mode)


def is_folder(status: os.stat_result) -> bool:
    """Tell whether *status* is that of a folder."""
    return stat.S_ISDIR(status.st_mode)


def is_link(status: os.stat_result) -> bool:
    """Tell whether *status* is that of a symbolic link."""
    return stat.S_ISLNK(status.st_mode)
