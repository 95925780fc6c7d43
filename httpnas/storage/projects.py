"""Projects: what XFS, ext4 and f2fs count for a quota on a folder.

A folder that hands its project down (FS_XFLAG_PROJINHERIT) takes in only files of that project.
rename(2) and link(2) fail with EXDEV otherwise, as if it were another file system.
"""

from __future__ import annotations

import errno
import fcntl
import struct

#: FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR, and the structure that both take (linux/fs.h).
_GET, _SET = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=IIIII8s")
_INHERIT = 0x200


#: The file system knows no projects, or this user namespace may not change them.
_REFUSED = (errno.ENOTTY, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES)


def join(fd: int, folder: int) -> bool:
    """Let the open file *fd* belong to the project that *folder* hands down.

    :return: whether that has changed anything. If not, a project is not why a rename failed, or
        nothing can be done about it.
    :raises OSError: as ioctl_fsxattr(2) fails, EDQUOT if the project has no room for the file.
    """
    try:
        flags, _, _, project, _, _ = _read(folder)
        own, extent, extents, present, cow, rest = _read(fd)
        if not flags & _INHERIT or project == present:
            return False
        fcntl.ioctl(fd, _SET, _FSXATTR.pack(own, extent, extents, project, cow, rest))
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    return True


def takes_in(folder: int, fd: int) -> bool:
    """Let the open file *fd* join the project of *folder*, and tell whether that let it in.

    :raises OSError: as :func:`join`.
    """
    if join(fd, folder):
        return True
    try:
        flags, _, _, project, _, _ = _read(folder)
        return not flags & _INHERIT or project == _read(fd)[3]
    except OSError as error:
        if error.errno in _REFUSED:
            return True
        raise


def _read(fd: int) -> tuple[int, int, int, int, int, bytes]:
    flags, extent, extents, project, cow, rest = _FSXATTR.unpack(
        fcntl.ioctl(fd, _GET, bytes(_FSXATTR.size))
    )
    return flags, extent, extents, project, cow, rest
