"""What daemons of format 1 have left on a storage: it is taken over, and they are kept out.

Such a daemon opens its folders ``locks``, ``run`` and ``records``, in this order and before
anything else, and then makes a folder with a lease in ``run``. It ends when one of the three is not
a folder. It knows nothing of this format, so that it must never run beside a daemon that does.

First ``locks`` gives way to a regular file, then ``records``. From then on, a daemon that still
starts has opened ``run`` before; and in a folder that was removed it cannot make anything. So the
moment in which the empty ``run`` is removed decides: either a living daemon is found in it, or none
of format 1 will ever run here again.

Each step can be made again, and by several daemons at once. Only the file ``format`` says that all
have been made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable

from httpnas.storage.descriptors import owned
from httpnas.storage.durability import sync_folder
from httpnas.storage.errors import OtherFormat, StorageAway
from httpnas.storage.format import LOCKS, RECORDS
from httpnas.storage.root import FOLDER

_RUNS = b"run"
#: What gives way, in the order in which daemons of format 1 open it: the old and the new name.
_LOCKS, _RECORDS = (b"locks", LOCKS), (b"records", RECORDS)
_SENTENCE = (
    b"This file keeps out daemons of httpnas 0.1, which cannot share a storage with later ones.\n"
    b"docs/operations.md says how to go back to them.\n"
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: How often a step is made again because others make it at the same time.
_TRIES = 100
#: Seconds for which a lease is held by somebody who only looks at it, at most.
_LOOK = 1.0

#: Moves an entry of a folder out of the way, to be removed later.
SetAside = Callable[[int, str], object]


class Former:
    """The folders of format 1 on a storage that has no format yet.

    :param private: descriptor of the daemon's own folder, which must stay open.
    """

    def __init__(self, private: int) -> None:
        self._private = private

    def refuse_living(self) -> None:
        """Refuse to go on while a daemon of format 1 is alive. Nothing is changed.

        :raises OtherFormat: when one is.
        """
        with contextlib.suppress(FileNotFoundError), owned(self.runs()) as runs:
            for run in os.listdir(runs):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.close(_lease_of_dead(runs, run))

    def runs(self) -> int:
        """Open the folder of their working folders; the caller closes it.

        :raises FileNotFoundError: when there is none.
        """
        return os.open(_RUNS, FOLDER | os.O_NOFOLLOW, dir_fd=self._private)

    def free_locks(self) -> None:
        """Take over the folder of lock files, and leave a regular file in its place."""
        self._take_over(*_LOCKS)

    def shut_out(self, set_aside: SetAside) -> None:
        """Take over all else, after which no daemon of format 1 can run here any more.

        :param set_aside: takes what dead daemons have left.
        :raises OtherFormat: when one has started meanwhile.
        """
        self._take_over(*_RECORDS)
        for _ in range(_TRIES):
            try:
                with owned(self.runs()) as runs:
                    for run in os.listdir(runs):
                        with contextlib.suppress(FileNotFoundError):
                            _clear(runs, run, set_aside)
                os.rmdir(_RUNS, dir_fd=self._private)
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        else:
            raise StorageAway("daemons of an earlier version start again and again")
        sync_folder(self._private)

    def _take_over(self, old: bytes, new: bytes) -> None:
        """Rename the folder *old* to *new*, and leave a regular file in its place."""
        for _ in range(_TRIES):
            try:
                return self._block(old)
            except IsADirectoryError:
                self._move(old, new)
        raise StorageAway("somebody makes the folders of an earlier version again and again")

    def _move(self, old: bytes, new: bytes) -> None:
        try:
            # The slash: when another daemon was faster, this is a file, and has to stay.
            os.rename(old + b"/", new, src_dir_fd=self._private, dst_dir_fd=self._private)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._join(old, new)

    def _join(self, old: bytes, new: bytes) -> None:
        """Move what is in *old* to *new*: an old daemon ran after this was broken off once."""
        with (
            owned(os.open(old, FOLDER | os.O_NOFOLLOW, dir_fd=self._private)) as source,
            owned(os.open(new, FOLDER | os.O_NOFOLLOW, dir_fd=self._private)) as target,
        ):
            for entry in os.listdir(source):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(entry, entry, src_dir_fd=source, dst_dir_fd=target)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(old, dir_fd=self._private)

    def _block(self, name: bytes) -> None:
        """Make a regular file *name*, with a sentence in it for people.

        :raises IsADirectoryError: when there is a folder.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            file = os.open(name, flags, 0o644, dir_fd=self._private)
        except OSError as error:
            if error.errno not in _NO_ROOM or not self._is_given(name):
                raise
            return
        with owned(file):
            if os.fstat(file).st_size == 0:
                _write_if_there_is_room(file, _SENTENCE)

    def _is_given(self, name: bytes) -> bool:
        """Make a lock file the file *name*, which takes no room; False when there is none.

        As soon as there is room, it is made again as a lock file by whoever needs it.
        """
        try:
            locks = os.open(LOCKS, FOLDER | os.O_NOFOLLOW, dir_fd=self._private)
        except FileNotFoundError:
            return False
        with owned(locks):
            spare = max(os.listdir(locks), default=None)
            if spare is not None:
                os.rename(spare, os.fsdecode(name), src_dir_fd=locks, dst_dir_fd=self._private)
        return spare is not None


def _write_if_there_is_room(file: int, text: bytes) -> None:
    try:
        os.write(file, text)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise


def _clear(runs: int, run: str, set_aside: SetAside) -> None:
    """Set aside the working folder *run* of a dead daemon.

    Its lease is unlinked first, while it is locked. That tells a daemon that is only just making
    that folder that it has lost it.
    """
    try:
        lease = _lease_of_dead(runs, run)
    except (FileNotFoundError, NotADirectoryError):
        if not _is_starting(runs, run):
            set_aside(runs, run)
        return
    with owned(lease):
        os.unlink(f"{run}/lease", dir_fd=runs)
        set_aside(runs, run)


def _is_starting(runs: int, run: str) -> bool:
    """Tell whether *run* may become the folder of a living daemon: it removes an empty one."""
    try:
        os.rmdir(run, dir_fd=runs)
    except NotADirectoryError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with owned(os.open(run, FOLDER | os.O_NOFOLLOW, dir_fd=runs)) as folder:
            return "lease" in os.listdir(folder)
    return True


def _lease_of_dead(runs: int, run: str) -> int:
    """Return the locked lease of *run*; the caller closes it.

    The lock is a shared one, so that several daemons of this format may look at the same time.

    :raises OtherFormat: when its daemon is alive.
    :raises FileNotFoundError: when it has none.
    """
    deadline = time.monotonic() + _LOOK
    while True:
        lease = os.open(f"{run}/lease", os.O_RDONLY | os.O_CLOEXEC, dir_fd=runs)
        try:
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lease)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return lease
        if time.monotonic() > deadline:
            raise OtherFormat(
                "a daemon of httpnas 0.1 is running on it, which cannot share it with this "
                "version: stop all of them first"
            )
        time.sleep(0.05)
