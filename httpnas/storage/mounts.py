"""Mounts: on which one an open file lies, and what is mounted where (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from httpnas.storage import statx

_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """The mount that a file was opened in.

    :ivar device: of its file system.
    :ivar number: tells mounts of one file system from each other; 0 when it is not known.
    """

    device: int
    number: int


def mount_of(fd: int) -> Mount:
    """Return the mount that *fd* was opened in."""
    return Mount(os.fstat(fd).st_dev, statx.mount(fd))


def kind(device: int) -> str:
    """Return the type of a file system, empty when it is not known."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    for fields in _mounts():
        if fields[2] == wanted:
            return os.fsdecode(fields[fields.index(b"-") + 1])
    return ""


def has_mount_below(folder: int, leaf: bytes) -> bool:
    """Tell whether something is mounted at or below *leaf* in the open *folder*.

    :raises OSError: when the list of mounts cannot be read.
    """
    try:
        path = os.path.join(os.readlink(b"/proc/self/fd/%d" % folder), leaf)
    except FileNotFoundError:
        return False  # there is no /proc, and so no list of mounts
    above = statx.mount(folder)
    for fields in _mounts():
        point = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), fields[4])
        # Mounts that another one hides have other parents.
        is_visible = not above or int(fields[1]) == above
        if is_visible and (point == path or point.startswith(path + b"/")):
            return True
    return False


def _mounts() -> Iterator[list[bytes]]:
    with suppress(FileNotFoundError), open("/proc/self/mountinfo", "rb") as mountinfo:
        for line in mountinfo:
            yield line.split()
