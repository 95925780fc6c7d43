"""Who may enter the daemon's own folder: its user alone, or a group whose daemons share a storage.

Whoever can open the lock files can hold up every change, and temporary files may be meant for fewer
people than may look into the storage. So nobody else may do either, whatever the umask is and what
lists the storage folder hands down. What an earlier version has made is adapted, if it is ours.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from httpnas.storage import acl
from httpnas.storage.descriptors import owned


class Access:
    """The rights of what is in the daemon's own folder.

    :param group: the group that shares it, None for nobody else.
    """

    def __init__(self, group: int | None = None) -> None:
        self._group = group
        #: The permission bits of folders, and those of files.
        self.folders, self.files = (0o700, 0o600) if group is None else (0o2770, 0o660)

    def give(self, fd: int) -> None:
        """Give the open file or folder *fd* its rights, if it is ours."""
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            return
        for of in (acl.DEFAULT, acl.ACCESS):
            with contextlib.suppress(OSError):
                os.removexattr(fd, of)
        if self._group is not None and self._group != status.st_gid:
            with contextlib.suppress(PermissionError):  # we are not in it: our own group remains
                os.fchown(fd, -1, self._group)
        mode = self.folders if stat.S_ISDIR(status.st_mode) else self.files
        if stat.S_IMODE(status.st_mode) != mode:
            with contextlib.suppress(OSError):  # as on FAT, where all files have the same bits
                os.fchmod(fd, mode)

    def give_files(self, folder: int, names: Iterable[str | bytes]) -> None:
        """Give the files *names* in the open *folder* their rights, those that are ours."""
        for name in names:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) != self.files:
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    with owned(os.open(name, flags, dir_fd=folder)) as fd:
                        self.give(fd)


def may_write(folder: int, *names: str) -> bool:
    """Tell whether this daemon may write to each of *names* in the open *folder*."""
    return all(
        os.access(name, os.R_OK | os.W_OK, dir_fd=folder, effective_ids=True) for name in names
    )
