"""Locks on names, held across processes and hosts for the moment in which something changes.

A name's lock is one of a fixed number of permanent files in the daemon's own folder, taken with
flock(2). It is not the named file itself: that may be replaced, removed or not exist yet. And it
is never removed, because a lock on a file that somebody unlinks protects nothing.

Which lock file it is follows from the inode of the folder that holds the name, and not from that
folder's own name. A folder that is moved in the meantime has two names, and whoever comes by
either of them must find the same lock.

Nobody waits here for a lock that others hold, unless told so (:func:`patiently`). A :class:`Claim`
keeps what it could take, and whoever has it comes again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import zlib
from collections.abc import Callable, Iterator, Set
from contextlib import closing, contextmanager
from typing import TypeVar

from httpnas.storage.errors import Contended, StorageFull, StorageGone, translated

#: How many lock files there are. Two names that share one wait for each other now and then. All
#: daemons on a storage must agree on it, of whatever version.
BUCKETS = 128
#: Seconds to wait for a lock that others hold.
LOCK_TIMEOUT = 30.0
#: Seconds between two tries to take a lock, at first and at most.
_SHORTEST_NAP, _LONGEST_NAP = 0.0005, 0.02

T = TypeVar("T")


class Locked(Exception):
    """Others hold a lock, or are to have a turn: the call is to be begun again with its claim."""


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
                os.close(self.open(bucket))

    @property
    def timeout(self) -> float:
        """Seconds to wait for a lock."""
        return self._timeout

    def claim(self, waited: Callable[[float], None] = lambda seconds: None) -> Claim:
        """Return a claim that holds nothing yet.

        :param waited: is called once with the seconds that its locks took, if it wanted any.
        """
        return Claim(self, waited)

    @contextmanager
    def hold(self, *names: tuple[int, bytes]) -> Iterator[None]:
        """Hold the locks of *names*, and wait for them in this thread.

        :param names: each the descriptor of a folder and a name in it.
        :raises Contended: when others hold a lock for longer than the timeout.
        """
        with closing(self.claim()) as claim:
            patiently(claim, lambda claim: claim.take(buckets(*names)))
            yield

    def open(self, bucket: bytes) -> int:
        """Open a lock file; whoever closes it gives its lock back."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with translated():
            try:
                return os.open(bucket, flags, 0o660, dir_fd=self._folder)
            except FileNotFoundError as error:
                raise StorageGone("the daemon's own folder is gone") from error


class Claim:
    """Locks that a change needs: those that it has by now, and those that it still waits for.

    Everybody takes locks in the same order, an open file's first and then those of names by their
    number, and keeps what they have while they wait. So two claims never wait for each other, and
    one that wants all locks gets them under any load.

    Its methods are called one at a time, from any thread, and :meth:`close` last.
    """

    def __init__(self, locks: NameLocks, waited: Callable[[float], None]) -> None:
        self._locks = locks
        self._waited: Callable[[float], None] | None = waited
        self._began: float | None = None
        self._nap = _SHORTEST_NAP
        self._wanted: list[int] = []
        #: Of the first of what is wanted, each locked but maybe the last.
        self._opened: list[int] = []
        self._locked = 0
        self._file: int | None = None
        self._has_file = False
        #: Undoes what was made on the way, unless the change is made in the end.
        self.undoing: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """Whether closing it would do something."""
        waiting = self._began is not None and self._waited is not None
        return waiting or bool(self._opened or self.undoing) or self._file is not None

    def covers(self, wanted: Set[int]) -> bool:
        """Tell whether the locks *wanted* are among those that it is about."""
        return wanted <= set(self._wanted)

    def take(self, wanted: Set[int]) -> None:
        """Hold the locks *wanted* (and maybe more), or be left to wait for them.

        :param wanted: as :func:`buckets` returns them.
        :raises Locked: when others hold one. Come again when :meth:`advance` says so.
        :raises Contended: when they do for too long.
        """
        if self._began is None:
            self._began = time.monotonic()
        if not self.covers(wanted):
            self._release_names()
            self._wanted = sorted(wanted)
        if not self.advance():
            raise Locked

    def take_file(self, fd: int) -> None:
        """Hold the lock of the open file *fd* as well; closing *fd* may give it back.

        Names are given up for a file that others hold: those may be other programs, which know
        nothing of the other names that share a lock with this one.

        :raises Locked: as :meth:`take`, and :exc:`Contended` as well.
        """
        if self._file is not None:
            if os.path.samestat(os.fstat(fd), os.fstat(self._file)):
                return
            self._release_file()  # another file has the name by now
        if not _is_locked(fd):
            self._release_names()
            self._file = os.dup(fd)
            self._refuse_late()
            raise Locked

    def keep_file(self, fd: int) -> int:
        """Return a descriptor of the open file *fd* that keeps its lock beyond this claim.

        The lock has to be taken. Whoever closes the descriptor gives it back.
        """
        return os.dup(fd if self._file is None else self._file)

    def wait_anew(self) -> None:
        """Let the next wait for a lock be as long as if it were the first one."""
        self._began = None

    def advance(self) -> bool:
        """Take of the missing locks what can be had at once; tell whether none is missing.

        :raises Contended: when one has been missing for too long.
        """
        with translated():
            complete = self._advance_file() and self._advance_names()
        if not complete:
            self._refuse_late()
        return complete

    def _advance_file(self) -> bool:
        if self._file is not None and not self._has_file:
            if os.fstat(self._file).st_nlink:
                self._has_file = _is_locked(self._file)
            else:
                self._release_file()  # it has been replaced or removed: another one counts
        return self._file is None or self._has_file

    def _advance_names(self) -> bool:
        while self._locked < len(self._wanted):
            if self._locked == len(self._opened):
                self._opened.append(self._locks.open(b"%03x" % self._wanted[self._locked]))
            if not _is_locked(self._opened[-1]):
                return False
            self._locked += 1
        return True

    def begin_again(self) -> None:
        """Give everything back, because it does not protect what is to be changed.

        :raises Locked: always, or :exc:`Contended` when that has been so for too long.
        """
        self.release()
        self._refuse_late()
        raise Locked

    def _refuse_late(self) -> None:
        began = time.monotonic() if self._began is None else self._began
        if time.monotonic() > began + self._locks.timeout:
            raise Contended("others have been changing this name for too long")

    def nap(self) -> float:
        """Return how many seconds to wait until it makes sense to try again."""
        nap = self._nap
        self._nap = min(nap * 2, _LONGEST_NAP)
        return nap

    def note_success(self) -> None:
        """Note that the wait for the locks is over."""
        if self._waited is not None and self._began is not None:
            self._waited(time.monotonic() - self._began)
            self._waited = None

    def close(self) -> None:
        """Give everything back, in the end."""
        self.note_success()  # or what came instead
        self.release()
        while self.undoing:
            self.undoing.pop()()

    def release(self) -> None:
        """Give everything back."""
        self._release_file()
        self._release_names()
        self._wanted = []

    def _release_names(self) -> None:
        self._locked = 0
        while self._opened:
            os.close(self._opened.pop())

    def _release_file(self) -> None:
        file, self._file, self._has_file = self._file, None, False
        if file is not None:
            os.close(file)


def patiently(claim: Claim, call: Callable[[Claim], T]) -> T:
    """Run *call* until it has its locks, and wait for them in this thread."""
    while True:
        try:
            return call(claim)
        except Locked:
            time.sleep(claim.nap())
            while not claim.advance():
                time.sleep(claim.nap())


def buckets(*names: tuple[int, bytes]) -> Set[int]:
    """Return the numbers of the locks of *names*, each the descriptor of a folder and a leaf."""
    return {_bucket(*name) for name in names}


def all_buckets() -> Set[int]:
    """Return the numbers of all locks: whoever has them has every name."""
    return set(range(BUCKETS))


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
