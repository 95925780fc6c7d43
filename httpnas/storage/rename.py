"""Renaming that never replaces anything: renameat2(2) with RENAME_NOREPLACE, or the next best.

CephFS and NFS do not know that flag. There, a temporary file (:func:`name_new`) and a file that has
a name already (:func:`rename_new`) are treated differently: a crash must not leave the one with two
names, nor the other with none.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

_NOREPLACE = 1
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def name_new(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Give the temporary file *name* in folder *source* a free name in folder *target*.

    Without the flag it is linked and then unlinked, on file systems that have links. Then either
    this or another program that makes the same name wins. What is left of the temporary file is
    reclaimed.

    :raises FileExistsError: when *new_name* is taken.
    :raises OSError: as rename(2).
    """
    if _renamed(source, name, target, new_name):
        return
    try:
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _rename_if_free(source, name, target, new_name)
    else:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=source)


def rename_new(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Rename *name* in folder *source* to *new_name* in folder *target*, which must be free.

    Without the flag it is renamed after nothing was found there. The locks of both names keep
    every daemon out. What another program makes there in that moment is replaced.

    :raises FileExistsError: when *new_name* is taken.
    :raises OSError: as rename(2).
    """
    if not _renamed(source, name, target, new_name):
        _rename_if_free(source, name, target, new_name)


def _rename_if_free(source: int, name: bytes, target: int, new_name: bytes) -> None:
    try:
        os.stat(new_name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)


def _renamed(source: int, name: bytes, target: int, new_name: bytes) -> bool:
    """Rename with the flag, or return False when the file system does not know it."""
    if _renameat2 is None:
        return False
    if _renameat2(source, name, target, new_name, _NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code), new_name)
    return False
