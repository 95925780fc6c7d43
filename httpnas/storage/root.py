"""Opening names below the storage root, so that nothing outside it is ever reached.

A *name* here is ``bytes``: relative, components joined by single slashes, none of them ``.`` or
``..``; ``b""`` is the root. ``httpnas.fields.names`` makes sure of that when it reads a request.

The kernel walks a name in one call with openat2(2) and RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
RESOLVE_NO_MAGICLINKS. Where that call is missing or forbidden (old kernels, some container
runtimes) each component is opened with O_NOFOLLOW instead, which is slower and as safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import weakref
from collections.abc import Sequence

from httpnas.storage import statx
from httpnas.storage.descriptors import handed_over, owned
from httpnas.storage.durability import sync_folder
from httpnas.storage.errors import (
    NoSuchFile,
    NotAFolder,
    OtherFileSystem,
    Reserved,
    StorageAway,
    StorageError,
    translated,
)
from httpnas.storage.mounts import mount_of

#: The daemon's own folder at the root. For clients it does not exist.
PRIVATE = b".httpnas"

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: O_NONBLOCK so that a FIFO cannot hold a thread, O_NOCTTY so that a terminal cannot be taken.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_STAT = os.O_PATH | os.O_CLOEXEC

_SYS_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _CACHED = 0x01, 0x02, 0x04, 0x08, 0x20
_SAFELY = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
_OPEN_HOW = struct.Struct("=QQQ")
#: How often a walk is tried again when others change the folders that it passes.
_TRIES = 128
#: Folders that are made in one call: more would hold a thread for long.
_MOST_FOLDERS = 100
_IN_THE_WAY = "a file stands where a folder of this name is needed"

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def is_private(name: bytes) -> bool:
    """Tell whether *name* is the daemon's own folder or lies in it."""
    return name == PRIVATE or name.startswith(PRIVATE + b"/")


def refuse_private(name: bytes) -> None:
    """Raise :exc:`Reserved` when *name* is the daemon's own."""
    if is_private(name):
        raise Reserved("this name is the daemon's own")


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return the parent's name and the last component of *name*."""
    parent, _, leaf = name.rpartition(b"/")
    return parent, leaf


def _openat2(root: int, name: bytes, flags: int, resolve: int) -> int:
    how = _OPEN_HOW.pack(flags, 0, resolve)
    # EAGAIN: a folder was renamed during the walk, and the kernel cannot tell whether the walk has
    # left the root. It asks for another try. Tries are bounded, because somebody who renames
    # without pause must not hold a thread.
    for _ in range(_TRIES):
        fd: int = _syscall(_SYS_OPENAT2, root, name or b".", how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code == errno.EINTR or (code == errno.EAGAIN and not resolve & _CACHED):
            continue
        break
    raise OSError(code, os.strerror(code), name)


def _step(at: int, component: bytes | str, flags: int = FOLDER) -> int:
    """Open one name in a folder. A link fails with ELOOP, as in openat2(2), not with ENOTDIR."""
    try:
        return os.open(component, flags | os.O_NOFOLLOW, dir_fd=at)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(component, dir_fd=at, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), component) from None
        raise


def _is_made(at: int, component: bytes) -> bool:
    """Make a folder in the folder *at*, or return False when something has its name."""
    try:
        os.mkdir(component, dir_fd=at)
    except FileExistsError:
        return False
    return True


def step_inside(at: int, component: bytes | str) -> int:
    """Open a folder in the folder *at*; the caller closes it.

    :raises OSError: also with EXDEV when something is mounted there.
    """
    with handed_over(_step(at, component)) as fd:
        if mount_of(fd) != mount_of(at):
            raise OSError(errno.EXDEV, "something is mounted there")
        return fd


def _walk(root: int, name: bytes, flags: int) -> int:
    if not name:
        return os.open(b".", flags, dir_fd=root)
    *folders, leaf = name.split(b"/")
    at = root
    try:
        for folder in folders:
            above, at = at, _step(at, folder)
            if above != root:
                os.close(above)
        with handed_over(_step(at, leaf, flags)) as fd:
            if flags & os.O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            return fd
    finally:
        if at != root:
            os.close(at)


class Root:
    """The folder below which everything is stored. It is open until it is closed or not used.

    :param path: the folder. Links on the way to it are followed, links below it never.
    :raises StorageError: when it cannot be opened as a folder.
    """

    def __init__(self, path: str) -> None:
        with translated():
            self.fd = os.open(path, FOLDER)
            self._closing = weakref.finalize(self, os.close, self.fd)
            self._closing.atexit = False
            self.mount = mount_of(self.fd)
        self.kernel_walks = self._kernel_walks()

    def close(self) -> None:
        """Close the root's descriptor."""
        with translated():
            self._closing()

    def _kernel_walks(self) -> bool:
        try:
            os.close(_openat2(self.fd, b"", _STAT, _SAFELY))
        except OSError:
            return False
        return True

    def _open(self, name: bytes, flags: int, resolve: int = 0) -> int:
        if self.kernel_walks:
            return _openat2(self.fd, name, flags, _SAFELY | resolve)
        return _walk(self.fd, name, flags)

    def open(self, name: bytes, flags: int) -> int:
        """Open *name*, which must exist, and return its descriptor; the caller closes it.

        :param flags: as for open(2), such as :data:`READ`.
        :raises NoSuchFile: also when a link is met, or the name is the daemon's own.
        """
        if is_private(name):
            raise NoSuchFile("no such file or folder")
        with translated():
            try:
                return self._open(name, flags)
            except OSError as error:
                if error.errno == errno.EXDEV:  # from openat2(2): the walk would leave the root
                    raise NoSuchFile("no such file or folder") from error
                raise

    def open_cached(self, name: bytes, flags: int) -> int | None:
        """Open *name* without waiting for a disk, or return None when that cannot be promised.

        RESOLVE_CACHED fails instead of reading folders from disk. RESOLVE_NO_XDEV keeps out of
        file systems that are mounted below the root, where opening might wait for a network.
        """
        if not self.kernel_walks or is_private(name):
            return None
        try:
            return _openat2(self.fd, name, flags, _SAFELY | _CACHED | _NO_XDEV)
        except OSError:
            return None

    def stat(self, name: bytes) -> os.stat_result | None:
        """Return the status of *name* as lstat(2) does, or None when there is nothing.

        :raises NotAFolder: when a file stands on the way.
        :raises NoSuchFile: when a link stands on the way.
        """
        with translated():
            try:
                return self._stat(name)
            except FileNotFoundError:
                os.fstat(self.fd)  # fails when it is the volume that is gone
                return None

    def _stat(self, name: bytes) -> os.stat_result:
        if not name:
            return os.fstat(self.fd)
        parent, leaf = split(name)
        try:
            folder = self._open(parent, _STAT | os.O_DIRECTORY)
        except NotADirectoryError as error:
            raise NotAFolder(_IN_THE_WAY) from error
        with owned(folder):
            return os.stat(leaf, dir_fd=folder, follow_symlinks=False)

    def open_parent(self, name: bytes) -> int:
        """Open the folder that holds *name*; the caller closes it.

        :raises NoSuchFile: when it is not there.
        :raises NotAFolder: when a file stands on the way.
        """
        with translated():
            try:
                return self._open(split(name)[0], FOLDER)
            except NotADirectoryError as error:
                raise NotAFolder(_IN_THE_WAY) from error

    def open_parent_to_change(self, name: bytes) -> int:
        """Open the folder that holds *name* as :meth:`open_parent`, to change what is in it.

        :raises OtherFileSystem: when something is mounted there, be it of the same file system.
        """
        with translated():
            try:
                with handed_over(self._open(split(name)[0], FOLDER, _NO_XDEV)) as fd:
                    if mount_of(fd) != self.mount:
                        raise OtherFileSystem("something is mounted there")
                    return fd
            except NotADirectoryError as error:
                raise NotAFolder(_IN_THE_WAY) from error

    def refuse_mounted(self, file: int) -> None:
        """Refuse to change the open *file*, if it is mounted over the one that has its name.

        Devices say nothing here: on overlayfs, a file may have another one than its folder.

        :raises OtherFileSystem: when it is.
        """
        if statx.mount(file) != self.mount.number:
            raise OtherFileSystem("something is mounted there")

    def open_nearest_to_change(self, name: bytes) -> int:
        """Open the folder that would hold *name*, or of those above it the nearest that is there.

        The caller closes it. What cannot be made below it is refused here, before content comes.

        :raises OtherFileSystem: when something is mounted there.
        :raises NotAFolder: when a file stands on the way.
        """
        try:
            return self.open_parent_to_change(name)
        except NoSuchFile:
            return self._descend(split(name)[0], [], 0)

    def make_parent(
        self, name: bytes, sync: bool, made: list[bytes] | None = None, most: int = _MOST_FOLDERS
    ) -> int | None:
        """Open the folder that holds *name*, and make it and its parents when they are missing.

        The caller closes it. It is None when there are more of them to make than *most*.

        :param sync: bring the entry of each new folder to stable storage.
        :param made: takes the names of the new folders, for :meth:`unmake`.
        :raises OtherFileSystem: when something is mounted there. Then nothing is made.
        """
        made = [] if made is None else made
        for _ in range(_TRIES):
            try:
                return self.open_parent_to_change(name)
            except NoSuchFile:
                new: list[bytes] = []
                try:
                    os.close(self._descend(split(name)[0], new, most))
                finally:
                    made += new
                if sync and new:
                    self._sync_entries(new)
                if len(new) == most:
                    return None
        raise StorageAway("the folder is removed again and again while it is made")

    def unmake(self, made: Sequence[bytes]) -> None:
        """Remove the folders *made* again, as long as nothing is in them."""
        for name in reversed(made):
            with (
                contextlib.suppress(OSError, StorageError),
                owned(self.open_parent_to_change(name)) as folder,
            ):
                os.rmdir(split(name)[1], dir_fd=folder)

    def _descend(self, name: bytes, made: list[bytes], most: int) -> int:
        """Walk to the folder *name*, or as far as there are folders, and open where that ends.

        :param made: takes the names of the folders that are made on the way.
        :param most: of how many that are.
        """
        at, done = os.dup(self.fd), 0
        with translated():
            try:
                for component in name.split(b"/"):
                    is_new = len(made) < most and _is_made(at, component)
                    if is_new:
                        made.append(name[: done + len(component)])
                    above, at = at, _step(at, component)
                    os.close(above)
                    if not is_new and mount_of(at) != self.mount:
                        raise OSError(errno.EXDEV, "something is mounted there")
                    done += len(component) + 1
            except FileNotFoundError:
                pass  # there is no more, or somebody has removed it again: the caller tries anew
            except NotADirectoryError as error:
                os.close(at)
                raise NotAFolder(_IN_THE_WAY) from error
            except BaseException:
                os.close(at)
                raise
            return at

    def _sync_entries(self, made: Sequence[bytes]) -> None:
        """Bring the entries of the folders *made*, each in the one before, to stable storage.

        This is done when all are made: then a journal takes them in one transaction.
        """
        above = split(made[0])[0]
        with translated(), contextlib.suppress(FileNotFoundError):  # somebody has removed it again
            at = self._open(above, FOLDER)
            try:
                for component in made[-1][len(above) :].lstrip(b"/").split(b"/"):
                    sync_folder(at)
                    last, at = at, _step(at, component)
                    os.close(last)
            finally:
                os.close(at)
