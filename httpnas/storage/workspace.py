"""A daemon's own working folder: temporary files, and trees that were set aside to be removed.

Each running daemon has one, ``.httpnas/run/ID``, and holds an flock(2) on the file ``lease`` in it
for as long as it lives. When somebody else can take that lock, its daemon is dead and what lies in
the folder is reclaimed. The kernel drops the lock with the process, so no clock is needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator

from httpnas.storage import notes
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import StorageGone, translated
from httpnas.storage.notes import Notes
from httpnas.storage.records import has_xattrs
from httpnas.storage.root import FOLDER, PRIVATE

_LEASE = "lease"
#: How many living daemons are met, at most, in the search for dead ones.
_MOST_ALIVE = 32


class Workspace:
    """This daemon's working folder, and the reclaiming of those whose daemon is gone.

    Its descriptors are open until it is closed or not used any more.

    :param root: descriptor of the storage root.
    :raises StorageError: when the root cannot be written to.
    """

    def __init__(self, root: int) -> None:
        held: list[int] = []
        # In a thread, because a volume that is given up may hang.
        self._closing = weakref.finalize(self, _in_a_thread, _close, held)
        self._closing.atexit = False
        self._held = held
        with translated():
            private = _make(root, PRIVATE)
            held.append(private)
            #: Descriptor of the folder for lock files.
            self.locks = _make(private, b"locks")
            held.append(self.locks)
            self._runs = _make(private, b"run")
            held.append(self._runs)
            #: Descriptor of the folder for records where there are no user xattrs.
            self.records = _make(private, b"records")
            held.append(self.records)
            #: Tells this storage from others.
            self.locks_inode = os.fstat(self.locks).st_ino
            while not self._settle():
                pass
        #: What this daemon appends to.
        self.notes = Notes(self._lease)
        #: Is called with each file that a dead daemon was appending to, before what it has left in
        #: its folder goes.
        self.repair: Callable[[bytes], None] | None = None
        self._inherited = notes.read(self._lease)
        #: Is told the inode of each file that is removed here for good, its last name with it.
        self.forget: Callable[[int], None] | None = None
        # Not numbers alone: a folder that was taken over may hold the same names already.
        self._stem = uuid.uuid4().hex[:8]
        self._serial = itertools.count()

    def _settle(self) -> bool:
        """Make a folder and take its lease; False when a reclaiming daemon was faster."""
        self._name = uuid.uuid4().hex
        try:
            os.mkdir(self._name, dir_fd=self._runs)
            return self._lease_of(self._name, os.O_CREAT)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            with contextlib.suppress(OSError):
                os.rmdir(self._name, dir_fd=self._runs)
            # On a full disk what a dead daemon has left can be taken over, and then reclaimed.
            if any(self._lease_of(run, 0) for run in os.listdir(self._runs)):
                return True
            raise

    def _lease_of(self, run: str, create: int) -> bool:
        """Take the lease of the folder *run*, or return False when that is not possible."""
        with contextlib.ExitStack() as opened:
            try:
                fd = os.open(run, FOLDER | os.O_NOFOLLOW, dir_fd=self._runs)
                opened.callback(os.close, fd)
                lease = os.open(_LEASE, os.O_RDWR | os.O_CLOEXEC | create, dir_fd=fd)
                opened.callback(os.close, lease)
                fcntl.flock(lease, fcntl.LOCK_EX | (0 if create else fcntl.LOCK_NB))
                if not os.path.samestat(os.stat(_LEASE, dir_fd=fd), os.fstat(lease)):
                    return False
            except (FileNotFoundError, BlockingIOError):
                return False
            opened.pop_all()
        self._name, self.fd, self._lease = run, fd, lease
        self._held += [fd, lease]
        return True

    def _fresh_name(self) -> bytes:
        return f"{self._stem}-{next(self._serial):x}".encode()

    def create(self) -> tuple[int, bytes]:
        """Make an empty temporary file; return its descriptor (for reading and writing) and name.

        The caller closes the descriptor and gives the name to :meth:`discard`.

        :raises StorageError: when the storage does not take it.
        """
        name = self._fresh_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with translated():
            try:
                return os.open(name, flags, 0o666, dir_fd=self.fd), name
            except FileNotFoundError as error:
                raise StorageGone("the daemon's own folder is gone") from error

    def verify_temporary(self, name: bytes) -> None:
        """Verify that the temporary file *name* is still there.

        :raises StorageGone: when it is not.
        """
        try:
            os.stat(name, dir_fd=self.fd)
        except FileNotFoundError as error:
            raise StorageGone("the daemon's own folder is gone") from error

    def discard(self, name: bytes) -> None:
        """Remove the temporary file *name* if it is still there."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def keeps_xattrs(self) -> bool:
        """Tell whether the file system here keeps user xattrs."""
        with translated():
            return has_xattrs(self._lease)

    def path_of(self, name: bytes) -> bytes:
        """Return where other daemons find the temporary file *name*, for :meth:`staged`."""
        return b"%s/%s" % (self._name.encode(), name)

    @contextlib.contextmanager
    def staged(self, path: bytes) -> Iterator[int | None]:
        """Open a temporary file of any daemon for the block, None when it is not there.

        :param path: as :meth:`path_of` gives it; empty for none.
        """
        run, _, name = path.partition(b"/")
        if not run.isalnum() or not name or b"/" in name:
            yield None
            return
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, dir_fd=self._runs)
        except OSError:
            yield None
            return
        with owned(fd):
            yield fd

    def set_aside(self, folder: int, leaf: bytes | str) -> bytes:
        """Move *leaf* out of *folder* to here, to be removed later; return its name here.

        :raises OSError: as rename(2).
        """
        name = self._fresh_name()
        os.rename(leaf, name, src_dir_fd=folder, dst_dir_fd=self.fd)
        return name

    def reclaim(self, name: bytes) -> Iterator[None]:
        """Remove what was set aside as *name*, with all in it, and yield after each entry.

        Folders in it are set aside in their turn, so that deep trees take few descriptors. What
        cannot be removed stays, invisible, and the next start tries again.
        """
        pending = [name]
        while pending:
            doomed = pending.pop()
            with contextlib.suppress(OSError):
                if self._is_removed(self.fd, doomed):
                    continue
                with owned(os.open(doomed, FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)) as folder:
                    for entry in os.listdir(folder):
                        if not self._is_removed(folder, entry):
                            pending.append(self.set_aside(folder, entry))
                        yield
                os.rmdir(doomed, dir_fd=self.fd)
            yield

    def _is_removed(self, folder: int, entry: bytes | str) -> bool:
        """Unlink *entry*, or return False because it is a folder."""
        status = None
        if self.forget is not None:
            status = os.stat(entry, dir_fd=folder, follow_symlinks=False)
        try:
            os.unlink(entry, dir_fd=folder)
        except IsADirectoryError:
            return False
        if self.forget is not None and status is not None and status.st_nlink == 1:
            self.forget(status.st_ino)
        return True

    def reclaim_abandoned(self) -> Iterator[None]:
        """Remove what dead daemons have left behind, and yield after each entry.

        Where there are many daemons, each tries the folders of only some others, by chance.

        :raises StorageError: when the folders cannot be read.
        """
        yield from self._repair(self._inherited)
        self._inherited = []
        for entry in _entries(self.fd):
            if entry != _LEASE and not entry.startswith(self._stem):
                yield from self.reclaim(os.fsencode(entry))
        runs = [run for run in _entries(self._runs) if run != self._name]
        random.shuffle(runs)
        alive = 0
        for run in runs:
            try:
                yield from self._reclaim_run(run)
            except BlockingIOError:
                alive += 1
                if alive == _MOST_ALIVE:
                    return
            except OSError:
                pass

    def _reclaim_run(self, run: str) -> Iterator[None]:
        try:
            lease = os.open(f"{run}/{_LEASE}", os.O_RDWR | os.O_CLOEXEC, dir_fd=self._runs)
        except FileNotFoundError:
            os.rmdir(run, dir_fd=self._runs)  # fails, as it should, once something is in it
            return
        with owned(lease):
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield from self._repair(notes.read(lease))
            with owned(os.open(run, FOLDER | os.O_NOFOLLOW, dir_fd=self._runs)) as folder:
                for entry in os.listdir(folder):
                    if entry != _LEASE:
                        yield from self.reclaim(self.set_aside(folder, entry))
                os.unlink(_LEASE, dir_fd=folder)
            os.rmdir(run, dir_fd=self._runs)

    def _repair(self, names: Iterable[bytes]) -> Iterator[None]:
        for name in names:
            if self.repair is not None:
                self.repair(name)
            yield

    def verify(self) -> None:
        """Verify that this folder is still there.

        :raises StorageGone: when it is not.
        """
        try:
            is_there = os.fstat(self.fd).st_nlink > 0
        except OSError as error:
            raise StorageGone(f"the volume is gone ({error.strerror})") from error
        if not is_there:
            raise StorageGone("the daemon's own folder is gone")

    def verify_lease(self) -> None:
        """Verify that this folder still belongs to this daemon.

        :raises StorageGone: when the lease is lost, as happens when a network file system takes the
            daemon for dead.
        """
        try:
            fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageGone("the lease of the daemon's own folder was lost") from error

    def leave(self) -> None:
        """Remove this folder when nothing is left in it."""
        with contextlib.suppress(OSError):
            if os.listdir(self.fd) == [_LEASE]:
                os.unlink(_LEASE, dir_fd=self.fd)
                os.rmdir(self._name, dir_fd=self._runs)

    def close(self) -> None:
        """Close everything that is open, and so give up the lease."""
        self._closing.detach()
        _close(self._held)


def _in_a_thread(call: Callable[[list[int]], None], fds: list[int]) -> None:
    threading.Thread(target=call, args=(fds,), daemon=True).start()


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # of a volume that is gone
            os.close(fd)


def _entries(folder: int) -> list[str]:
    with translated():
        return os.listdir(folder)


def _make(folder: int, name: bytes) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
