"""A daemon's own working folder: temporary files, and trees that were set aside to be removed.

Each running daemon has one, ``.httpnas/run.2/ID``, and holds an flock(2) on the file ``lease`` in
it for as long as it lives. When somebody else can take that lock, its daemon is dead and what lies
in the folder is reclaimed. The kernel drops the lock with the process, so no clock is needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator

from httpnas.storage import format, notes, projects
from httpnas.storage.access import Access, may_write
from httpnas.storage.commits import is_locked
from httpnas.storage.descriptors import owned
from httpnas.storage.errors import (
    NotPermitted,
    OtherFormat,
    StorageError,
    StorageGone,
    translated,
)
from httpnas.storage.format import LOCKS, RECORDS, RUNS, Place
from httpnas.storage.migration import Former
from httpnas.storage.notes import Note, Notes
from httpnas.storage.records import has_xattrs
from httpnas.storage.removal import Removal
from httpnas.storage.root import FOLDER, PRIVATE

_LEASE = "lease"
#: How many living daemons are met, at most, in the search for dead ones.
_MOST_ALIVE = 32
#: Seconds for which it is kept what was staged for a file that is not where it was.
_KEPT = 7 * 86400


class Workspace:
    """This daemon's working folder, and the reclaiming of those whose daemon is gone.

    Its descriptors are open until it is closed or not used any more.

    :param root: descriptor of the storage root.
    :param shared: whether daemons of other users in the root's group use the storage too.
    :raises OtherFormat: when the storage is in a format that this version does not work with.
    :raises StorageError: when the root cannot be written to.
    """

    def __init__(self, root: int, shared: bool = False) -> None:
        held: list[int] = []
        # In a thread, because a volume that is given up may hang.
        self._closing = weakref.finalize(self, _in_a_thread, _close, held)
        self._closing.atexit = False
        self._held = held
        #: Is called with each file that a dead daemon was appending to, before what it has left in
        #: its folder goes. It returns False when that has to stay for now.
        self.repair: Callable[[bytes], bool] = lambda name: True
        #: Returns the status of the file that has a name, None when there is none.
        self.stat: Callable[[bytes], os.stat_result | None] = lambda name: None
        #: Is told the inode of each file that is removed here for good, its last name with it.
        self.forget: Callable[[int], None] | None = None
        # Not numbers alone: a folder that was taken over may hold the same names already.
        self._stem = uuid.uuid4().hex[:8]
        self._serial = itertools.count()
        self._works: set[bytes] = set()
        with translated(), _who_has_it(root):
            self._access = Access(os.fstat(root).st_gid if shared else None)
            self._private = self._made(root, PRIVATE)
            self._chosen = format.read(self._private)
            former = Former(self._private) if self._chosen is None else None
            if former is not None:
                former.refuse_living()
                former.free_locks()
            self._access.give(self._private)
            #: Descriptor of the folder for lock files.
            self.locks = self._made(self._private, LOCKS)
            self._access.give(self.locks)
            #: Tells this storage from others.
            self.locks_inode = os.fstat(self.locks).st_ino
            try:
                self._settle()
            except OSError as error:
                if former is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                former.shut_out(_remove)  # which makes room
                self._settle()
            #: What this daemon appends to.
            self.notes = Notes(self._lease)
            self._inherited = notes.read(self._lease)
            try:
                self._open_records(former)
            except BaseException:
                self.leave()
                raise

    def _made(self, folder: int, name: bytes) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, self._access.folders, dir_fd=folder)
        fd = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        self._held.append(fd)
        return fd

    def _open_records(self, former: Former | None) -> None:
        if former is not None:
            former.shut_out(self._inherit)
        #: Descriptor of the folder for records that are beside their files.
        self.records = self._made(self._private, RECORDS)
        self._access.give(self.records)
        has_them = self._chosen != "beside" and has_xattrs(self._lease)
        self._place = self._chosen or self._likely_place(has_them)
        if self._place == "xattr" and not has_them:
            raise OtherFormat(
                "the records of its files are in user xattrs, and this file system has none, or "
                "is mounted without them: mount it with them, or stop all daemons and remove "
                ".httpnas (docs/operations.md tells what that loses)"
            )
        self.choose()

    def give_locks(self) -> None:
        """Give all lock files, also those of earlier versions, the rights that they should have."""
        with translated():
            self._access.give_files(self.locks, os.listdir(self.locks))

    def verify_access(self) -> None:
        """Verify that this daemon may do what each change needs.

        :raises NotPermitted: when lock files or records of another user forbid it.
        """
        with translated():
            if not may_write(self.locks, *os.listdir(self.locks)):
                raise NotPermitted(f".httpnas/{os.fsdecode(LOCKS)} has lock files of another user")
            if not self.has_xattrs and not may_write(self.records, "."):
                raise NotPermitted(f".httpnas/{os.fsdecode(RECORDS)} belongs to another user")

    def _likely_place(self, has_them: bool) -> Place:
        """Return where records are to be: they stay beside the files if there are some already."""
        return "xattr" if has_them and not os.listdir(self.records) else "beside"

    def _inherit(self, folder: int, leaf: str) -> None:
        """Take what a dead daemon of format 1 has left, as if its folder had been taken over."""
        os.rename(leaf, f"old-{uuid.uuid4().hex}", src_dir_fd=folder, dst_dir_fd=self.fd)

    def choose(self) -> None:
        """Write down where records are, unless this has been done.

        On a full disk, it is not done; the next call tries again.

        :raises OtherFormat: when another daemon has chosen otherwise meanwhile.
        """
        if self._chosen is None:
            self._chosen = format.choose(self._private, self.fd, self._fresh_name(), self._place)
        self._access.give_files(self._private, [format.FILE])
        if self._chosen not in (None, self._place):
            raise OtherFormat(
                "daemons on it differ in whether it has user xattrs: restart this one"
            )

    @property
    def has_xattrs(self) -> bool:
        """Whether files keep their records themselves, in user xattrs."""
        return self._place == "xattr"

    def _settle(self) -> None:
        self._runs = self._made(self._private, RUNS)
        self._access.give(self._runs)
        while not self._has_settled():
            pass

    def _has_settled(self) -> bool:
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
                lease = os.open(_LEASE, os.O_RDWR | os.O_CLOEXEC | create, 0o600, dir_fd=fd)
                opened.callback(os.close, lease)
                fcntl.flock(lease, fcntl.LOCK_EX | (0 if create else fcntl.LOCK_NB))
                if not os.path.samestat(os.stat(_LEASE, dir_fd=fd), os.fstat(lease)):
                    return False
            except (FileNotFoundError, BlockingIOError):
                return False
            self._access.give(fd)
            self._access.give(lease)
            opened.pop_all()
        self._name, self.fd, self._lease = run, fd, lease
        self._held += [fd, lease]
        return True

    def _fresh_name(self) -> bytes:
        return f"{self._stem}-{next(self._serial):x}".encode()

    def create(self, mode: int = 0o600) -> tuple[int, bytes]:
        """Make an empty temporary file; return its descriptor (for reading and writing) and name.

        The caller closes the descriptor and gives the name to :meth:`discard`.

        :param mode: its permission bits, from which the umask takes away as from any new file's.
        :raises StorageError: when the storage does not take it.
        """
        name = self._fresh_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with translated():
            try:
                return os.open(name, flags, mode, dir_fd=self.fd), name
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

    def path_of(self, name: bytes) -> bytes:
        """Return where other daemons find the temporary file *name*, for :meth:`staged`."""
        return b"%s/%s" % (self._name.encode(), name)

    @contextlib.contextmanager
    def at_work(self, name: bytes | None) -> Iterator[bytes]:
        """Yield the path of an append that is made in the block, for :meth:`is_at_work`.

        :param name: the temporary file in which it is staged, if there is one.
        """
        path = self.path_of(name or self._fresh_name())
        self._works.add(path)
        try:
            yield path
        finally:
            self._works.discard(path)

    def is_at_work(self, path: bytes) -> bool:
        """Tell whether the append *path* is being made, by this daemon or one that lives.

        :raises OSError: when that cannot be found out.
        """
        run = path.partition(b"/")[0]
        if run == self._name.encode():
            return path in self._works
        if not run.isalnum():
            return False
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            lease = os.open(b"%s/%s" % (run, _LEASE.encode()), flags, dir_fd=self._runs)
        except (FileNotFoundError, PermissionError):
            return False
        with owned(lease):
            return is_locked(lease)

    def repair_later(self, name: bytes) -> None:
        """Have the file *name* repaired, in which this daemon could not undo what it had begun."""
        self._inherited.append(Note(name))

    @contextlib.contextmanager
    def staged(self, path: bytes) -> Iterator[int | None]:
        """Open a temporary file of any daemon for the block, None when it is not there.

        :param path: as :meth:`path_of` gives it; empty for none.
        :raises OSError: when that cannot be found out.
        """
        run, _, name = path.partition(b"/")
        if not run.isalnum() or not name or b"/" in name:
            yield None
            return
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, dir_fd=self._runs)
        except FileNotFoundError:
            yield None
            return
        with owned(fd):
            yield fd

    def set_aside(self, folder: int, leaf: bytes | str) -> bytes:
        """Move *leaf* out of *folder* to here, to be removed later; return its name here.

        :raises OSError: as rename(2).
        """
        name = self._fresh_name()
        try:
            os.rename(leaf, name, src_dir_fd=folder, dst_dir_fd=self.fd)
        except OSError as error:
            if error.errno != errno.EXDEV or not self._joined(folder, leaf):
                raise
            os.rename(leaf, name, src_dir_fd=folder, dst_dir_fd=self.fd)
        return name

    def _joined(self, folder: int, leaf: bytes | str) -> bool:
        """Let *leaf*, which is to be removed, belong to the project of this folder."""
        with owned(os.open(leaf, FOLDER | os.O_NOFOLLOW, dir_fd=folder)) as doomed:
            return projects.join(doomed, self.fd)

    def reclaim(self, name: bytes) -> Iterator[None]:
        """Remove what was set aside as *name*, with all in it, and yield after each entry.

        What cannot be removed stays, invisible, and the next start tries again.

        :raises NotFreed: in the end, when something stays.
        """
        removal = self._removal()
        yield from removal.remove(self.fd, name)
        removal.verify()

    def remove_at_once(self, folder: int, leaf: bytes) -> None:
        """Remove *leaf* of *folder* with all in it, because it cannot be set aside.

        :raises OSError: when something stays.
        """
        removal = self._removal()
        for _ in removal.remove(folder, leaf):
            pass
        if removal.kept:
            raise removal.kept[0][1]

    def _removal(self) -> Removal:
        return Removal(self.fd, self.set_aside, self.forget)

    def reclaim_abandoned(self) -> Iterator[None]:
        """Remove what dead daemons have left behind, and yield after each entry.

        Where there are many daemons, each tries the folders of only some others, by chance.

        :raises StorageError: when the folders cannot be read.
        :raises NotFreed: in the end, when something stays.
        """
        with translated():
            self.choose()
        removal = self._removal()
        inherited = self._inherited.copy()
        if (yield from self._repaired(inherited)):
            del self._inherited[: len(inherited)]
            for entry in _entries(self.fd):
                if entry != _LEASE and not entry.startswith(self._stem):
                    yield from removal.remove(self.fd, os.fsencode(entry))
        runs = [run for run in _entries(self._runs) if run != self._name]
        random.shuffle(runs)
        alive = 0
        for run in runs:
            try:
                yield from self._reclaim_run(run, removal)
            except BlockingIOError:
                alive += 1
                if alive == _MOST_ALIVE:
                    break
            except PermissionError as error:  # another user's, of which nobody knows if it is alive
                removal.kept.append((os.fsencode(run), error))
            except OSError:
                pass
        removal.verify()

    def _reclaim_run(self, run: str, removal: Removal) -> Iterator[None]:
        try:
            lease = os.open(f"{run}/{_LEASE}", os.O_RDWR | os.O_CLOEXEC, dir_fd=self._runs)
        except FileNotFoundError:
            os.rmdir(run, dir_fd=self._runs)  # fails, as it should, once something is in it
            return
        with owned(lease):
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Only its own daemon keeps it for itself: readers must not take the dead one for alive.
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
            noted = notes.read(lease)
            if not (yield from self._repaired(noted)):
                return
            with owned(os.open(run, FOLDER | os.O_NOFOLLOW, dir_fd=self._runs)) as folder:
                kept = {_LEASE, *self._still_needed(folder, noted)}
                for entry in os.listdir(folder):
                    if entry not in kept:
                        yield from removal.remove(folder, os.fsencode(entry))
                if os.listdir(folder) == [_LEASE]:
                    os.unlink(_LEASE, dir_fd=folder)
                    os.rmdir(run, dir_fd=self._runs)

    def _repaired(self, noted: Iterable[Note]) -> Generator[None, None, bool]:
        """Repair the files that were *noted*, and tell whether that was possible for all."""
        all_are = True
        for note in noted:
            all_are = self.repair(note.name) and all_are
            yield
        return all_are

    def _still_needed(self, folder: int, noted: Iterable[Note]) -> Iterator[str]:
        """Yield what in *folder* was staged for files that could not be repaired.

        Others have moved them, and who meets them judges by it what was appended.
        """
        for note in noted:
            with contextlib.suppress(FileNotFoundError):
                staged = os.stat(note.staged, dir_fd=folder)
                if time.time() - staged.st_mtime < _KEPT and not self._is_there(note):
                    yield os.fsdecode(note.staged)

    def _is_there(self, note: Note) -> bool:
        with contextlib.suppress(StorageError):
            status = self.stat(note.name)
            return status is not None and status.st_ino == note.inode
        return False

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


@contextlib.contextmanager
def _who_has_it(root: int) -> Iterator[None]:
    """Say what to do when the block is refused because another user has the daemon's own folder."""
    try:
        yield
    except PermissionError as error:
        try:
            owner = os.stat(PRIVATE, dir_fd=root).st_uid
        except OSError:
            raise error from None
        if owner == os.geteuid():
            raise
        raise NotPermitted(
            f"its folder .httpnas belongs to the user {owner}, and this daemon runs as "
            f"{os.geteuid()}: run it as that user, or run all daemons on it with --shared-by group"
        ) from error


def _remove(folder: int, entry: str) -> None:
    # Before Python 3.11, rmtree() takes no descriptor.
    shutil.rmtree(f"/proc/self/fd/{folder}/{entry}", ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(entry, dir_fd=folder)  # if it is none of a daemon's folders, but a file
