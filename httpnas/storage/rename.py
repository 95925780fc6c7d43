"""Renaming that never replaces anything: renameat2(2) with RENAME_NOREPLACE, or what comes near."""

from __future__ import annotations

import ctypes
import errno
import os

_NOREPLACE = 1
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def rename_new(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Rename *name* in folder *source* to *new_name* in folder *target*, which must be free.

    Where the file system knows no such flag (CephFS, NFS) a file is linked and then unlinked,
    which is as safe but for a crash in between, after which it has both names. A folder can not
    be linked: there, an empty folder that appears in the same moment is replaced.

    :raises FileExistsError: when *new_name* is taken.
    :raises OSError: as rename(2).
    """
    if _renameat2 is not None:
        if _renameat2(source, name, target, new_name, _NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code), new_name)
    try:
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except PermissionError:  # a folder
        _rename_folder(source, name, target, new_name)
    else:
        os.unlink(name, dir_fd=source)


def _rename_folder(source: int, name: bytes, target: int, new_name: bytes) -> None:
    try:
        os.stat(new_name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
