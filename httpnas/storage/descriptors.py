"""Who closes a descriptor: the ``with`` statement that opens it, unless it hands it over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def owned(fd: int) -> Iterator[int]:
    """Close *fd* when the block ends."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def handed_over(fd: int) -> Iterator[int]:
    """Close *fd* only when the block fails: otherwise it belongs to whom the block gave it."""
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise


@contextmanager
def sole_inode(folder: int, leaf: bytes) -> Iterator[int | None]:
    """Yield the inode of *leaf* in *folder*, None if it has another name too, or is not there.

    No other file gets that inode before the block ends, also if this one is removed in it.
    """
    try:
        fd = os.open(leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        yield None
        return
    with owned(fd):
        status = os.fstat(fd)
        yield status.st_ino if status.st_nlink == 1 else None
