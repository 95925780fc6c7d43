"""Bringing the entries of a folder to stable storage, where the file system can do that.

CIFS, sshfs, 9p and other file systems in user space may not sync folders. Then their server decides
when a new name is there for good, and nothing here can wait for that.
"""

from __future__ import annotations

import errno
import os

#: What fsync(2) says of a folder where it cannot be synced at all.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR)


def sync_folder(folder: int) -> bool:
    """Bring the entries of the open *folder* to stable storage (fsync(2)).

    :return: whether the file system can do that. A change that was made is no failure because of
        it: the daemon has warned of it when it started.
    :raises OSError: when it can, and fails.
    """
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True
