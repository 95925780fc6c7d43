"""Locks on names, held across processes and hosts for the moment in which something changes.

A name's lock is one of a fixed number of permanent files in the daemon's own folder, taken with
flock(2). It is not the named file itself, which may be replaced, removed or not exist yet; and
it is never removed, as a lock on a file that somebody unlinks protects nothing. Which one it is
follows from the folder that holds the name, and not from that folder's own name: a folder that
is moved in the meantime has two names, and whoever comes by either must find the same lock.
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

from httpnas.storage.errors import Contended, StorageFull, StorageGone, translated

#: How many lock files there are. Two names that share one wait for each other now and then.
BUCKETS = 128
#: Seconds after which a lock that others hold is given up.
PATIENCE = 30.0
_LONGEST_NAP = 0.02


class NameLocks:
    """The locks of one storage root.

    :param folder: descriptor of the folder the lock files are kept in; it must stay open.
    :param patience: seconds to wait for a lock.
    """

    def __init__(self, folder: int, patience: float = PATIENCE) -> None:
        self._folder = folder
        self._patience = patience
        # All of them now: when there are no inodes left, something must still be deletable.
        missing = {b"%03x" % bucket for bucket in range(BUCKETS)} - set(_listed(folder))
        with contextlib.suppress(StorageFull):
            for bucket in sorted(missing):
                os.close(self._opened(bucket))

    @contextmanager
    def hold(self, *names: tuple[int, bytes]) -> Iterator[None]:
        """Hold the locks of *names*, alone among all threads, daemons and hosts.

        Several are taken in one order by everybody, so that two holders never wait for each other.

        :param names: each the descriptor of a folder and a name in it.
        :raises Contended: when they can not be had in time.
        """
        with ExitStack() as held:
            for bucket in sorted({_bucket(*name) for name in names}):
                held.callback(os.close, self._take(b"%03x" % bucket))
            yield

    def _take(self, bucket: bytes) -> int:
        deadline = time.monotonic() + self._patience
        nap = 0.0005
        fd = self._opened(bucket)
        with translated():
            try:
                while not _lock(fd):
                    if time.monotonic() > deadline:
                        raise Contended("others have been changing this name for too long")
                    time.sleep(nap)
                    nap = min(nap * 2, _LONGEST_NAP)
            except BaseException:
                os.close(fd)
                raise
        return fd

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
    return zlib.crc32(b"%x/%s" % (os.fstat(folder).st_ino, leaf)) % BUCKETS


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
