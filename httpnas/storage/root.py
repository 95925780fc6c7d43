"""Opening names below the storage root, so that nothing outside it is ever reached.

A *name* here is ``bytes``: relative, components joined by single slashes, none of them ``.`` or
``..``; ``b""`` is the root. Who makes names from requests checks that (``httpnas.fields.names``).

The kernel walks a name in one call with openat2(2) and RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
RESOLVE_NO_MAGICLINKS. Where that call is missing or forbidden (old kernels, some container
runtimes) each component is opened with O_NOFOLLOW instead: slower, and as safe.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import weakref

from httpnas.storage.errors import (
    NoSuchFile,
    NotAFolder,
    OtherFileSystem,
    Reserved,
    StorageAway,
    translate,
    translated,
)

#: The daemon's own folder at the root. For clients it does not exist.
PRIVATE = b".httpnas"

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: O_NONBLOCK so that a FIFO cannot hold a thread, O_NOCTTY so that a terminal cannot be taken.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_LOOK = os.O_PATH | os.O_CLOEXEC

_SYS_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _CACHED = 0x01, 0x02, 0x04, 0x08, 0x20
_SAFELY = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
_OPEN_HOW = struct.Struct("=QQQ")
#: How often a walk is begun again when others change the folders under it.
_TRIES = 128
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
    # EAGAIN: the name changed under a walk that must not leave the root; the kernel asks for
    # another try. Somebody who renames without pause must not hold a thread, so tries end.
    for _ in range(_TRIES):
        fd: int = _syscall(_SYS_OPENAT2, root, name or b".", how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code == errno.EINTR or (code == errno.EAGAIN and not resolve & _CACHED):
            continue
        break
    raise OSError(code, os.strerror(code), name)


def _step(at: int, component: bytes, flags: int = FOLDER) -> int:
    """Open one name in a folder; a link is ELOOP, as openat2 has it, and not ENOTDIR."""
    try:
        return os.open(component, flags | os.O_NOFOLLOW, dir_fd=at)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(component, dir_fd=at, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), component) from None
        raise


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
        fd = _step(at, leaf, flags)
    finally:
        if at != root:
            os.close(at)
    if flags & os.O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return fd


class Root:
    """The folder everything is stored below, held open until it is closed or nobody uses it.

    :param path: the folder; links on the way to it are followed, links below it never.
    :raises StorageError: when it can not be opened as a folder.
    """

    def __init__(self, path: str) -> None:
        with translated():
            self.fd = os.open(path, FOLDER)
            self._closing = weakref.finalize(self, os.close, self.fd)
            self._closing.atexit = False
            self.device = os.fstat(self.fd).st_dev
        self.kernel_walks = self._kernel_walks()

    def close(self) -> None:
        """Give the root's descriptor back."""
        self._closing()

    def _kernel_walks(self) -> bool:
        try:
            os.close(_openat2(self.fd, b"", _LOOK, _SAFELY))
        except OSError:
            return False
        return True

    def _open(self, name: bytes, flags: int) -> int:
        if self.kernel_walks:
            return _openat2(self.fd, name, flags, _SAFELY)
        return _walk(self.fd, name, flags)

    def open(self, name: bytes, flags: int) -> int:
        """Open *name*, which must exist, and return its descriptor.

        :raises NoSuchFile: also when a link is met, or the name is the daemon's own.
        """
        if is_private(name):
            raise NoSuchFile("no such file or folder")
        with translated():
            try:
                return self._open(name, flags)
            except OSError as error:
                if error.errno == errno.EXDEV:  # openat2's word for a walk that left the root
                    raise NoSuchFile("no such file or folder") from error
                raise

    def open_cached(self, name: bytes, flags: int) -> int | None:
        """Open *name* without waiting for a disk, or return None when that can not be promised.

        RESOLVE_CACHED fails instead of reading folders from disk, RESOLVE_NO_XDEV keeps out of
        file systems mounted below the root, whose own ``open`` might wait for a network.
        """
        if not self.kernel_walks or is_private(name):
            return None
        try:
            return _openat2(self.fd, name, flags, _SAFELY | _CACHED | _NO_XDEV)
        except OSError:
            return None

    def stat(self, name: bytes) -> os.stat_result | None:
        """Return what *name* is (never what a link points to), or None when there is nothing.

        :raises NotAFolder: when a file stands on the way.
        :raises NoSuchFile: when a link stands on the way.
        """
        if not name:
            return os.fstat(self.fd)
        parent, leaf = split(name)
        with translated():
            try:
                folder = self._open(parent, _LOOK | os.O_DIRECTORY)
            except FileNotFoundError:
                os.fstat(self.fd)  # fails when it is the volume that is not there
                return None
            except NotADirectoryError as error:
                raise NotAFolder(_IN_THE_WAY) from error
            try:
                return os.stat(leaf, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                os.fstat(self.fd)
                return None
            finally:
                os.close(folder)

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
        """Open the folder that holds *name* like :meth:`open_parent`, to change what is in it.

        :raises OtherFileSystem: when the folder is on another file system than the root.
        """
        fd = self.open_parent(name)
        if os.fstat(fd).st_dev != self.device:
            os.close(fd)
            raise OtherFileSystem("another file system is mounted there")
        return fd

    def make_parent(self, name: bytes, sync: bool) -> int:
        """Open the folder that holds *name*, making it and its parents when they are missing.

        :param sync: bring each new folder's entry to stable storage.
        :raises OtherFileSystem: when the folder is on another file system than the root.
        """
        for _ in range(_TRIES):
            try:
                return self.open_parent_to_change(name)
            except NoSuchFile:
                self._make_folders(split(name)[0], sync)
        raise StorageAway("the folder is removed again and again while it is made")

    def _make_folders(self, name: bytes, sync: bool) -> None:
        at = os.dup(self.fd)
        try:
            for component in name.split(b"/"):
                try:
                    os.mkdir(component, dir_fd=at)
                except FileExistsError:
                    pass
                else:
                    if sync:
                        os.fsync(at)
                above, at = at, _step(at, component)
                os.close(above)
        except FileNotFoundError:
            return  # removed again by somebody else: the caller tries anew
        except NotADirectoryError as error:
            raise NotAFolder(_IN_THE_WAY) from error
        except OSError as error:
            raise translate(error) from error
        finally:
            os.close(at)
