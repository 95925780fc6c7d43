"""Locks on names, held across processes and hosts for the moment in which something changes.

A name's lock is one of a fixed number of permanent files in the daemon's own folder, taken with
flock(2). It is not the named file itself: that may be replaced, removed or not exist yet. And it
is never removed, because a lock on a file that somebody unlinks protects nothing.

Which lock file it is follows from the inode of the folder that holds the name, and not from that
folder's own name. A folder that is moved in the meantime has two names, and whoever comes by
either of them must find the same lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from httpnas.storage.descriptors import owned
from httpnas.storage.errors import Contended, StorageFull, StorageGone, translated

#: How many lock files there are. Two names that share one wait for each other now and then. All
#: daemons on a storage must agree on it, of whatever version.
BUCKETS = 128
#: Seconds to wait for a lock that others hold.
LOCK_TIMEOUT = 30.0
#: Seconds between two tries to take a lock, at most.
_LONGEST_NAP = 0.02


class NameLocks:
    """The locks of one storage root.

    :param folder: descriptor of the folder that the lock files are in; it must stay open.
    :param timeout: seconds to wait for a lock.
    """

    def __init__(self, folder: int, timeout: float = LOCK_TIMEOUT) -> None:
        self._folder = folder
        self._timeout = timeout
        # All are made now: when no inodes are left, files must still be deletable.
        missing = {b"%03x" % bucket for bucket in range(BUCKETS)} - set(_listed(folder))
        with contextlib.suppress(StorageFull):
            for bucket in sorted(missing):
                os.close(self._opened(bucket))

    @contextmanager
    def hold(self, *names: tuple[int, bytes]) -> Iterator[None]:
        """Hold the locks of *names*, alone among all threads, daemons and hosts.

        Everybody takes several locks in the same order, so that two holders never wait for each
        other.

        :param names: each the descriptor of a folder and a name in it.
        :raises Contended: when others hold a lock for longer than the timeout.
        """
        with ExitStack() as held:
            for bucket in sorted({_bucket(*name) for name in names}):
                fd = held.enter_context(owned(self._opened(b"%03x" % bucket)))
                self._wait_for(fd)
            yield

    def _wait_for(self, fd: int) -> None:
        """Take the lock of the open file *fd*; closing it gives the lock back."""
        deadline = time.monotonic() + self._timeout
        nap = 0.0005
        with translated():
            while not _is_locked(fd):
                if time.monotonic() > deadline:
                    raise Contended("others have been changing this name for too long")
                time.sleep(nap)
                nap = min(nap * 2, _LONGEST_NAP)

    def _opened(self, bucket: bytes) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with translated():
            try:
                return os.open(bucket, flags, 0o666, dir_fd=self._folder)
            except FileNotFoundError as error:
                raise StorageGone("the daemon's own folder is gone") from error


def _listed(folder: int) -> Iterator[bytes]:
    with translated():
        return map(os.fsencode, os.listdir(folder))


def _bucket(folder: int, leaf: bytes) -> int:
    with translated():
        return zlib.crc32(b"%x/%s" % (os.fstat(folder).st_ino, leaf)) % BUCKETS


def _is_locked(fd: int) -> bool:
    """Try to take the lock of *fd*, and tell whether it is taken now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
