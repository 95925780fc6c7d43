"""What a file takes over from the one that it replaces, or from the folder that it appears in.

A temporary file is made in the daemon's own folder. What the kernel would have given it elsewhere
is given to it here, before it has its name, so that nobody ever sees it with other rights:

- A file that replaces another one gets its owner, group, permission bits, access control list and
  user xattrs: what a program that writes in place would have left.
- Any other file gets what it would have had if it had been made in its folder: the group of a
  setgid folder, and what the folder's default list makes of mode 0666.

What the system refuses is left out, but never so that somebody may read more than before. Bits
that give privileges (setuid, setgid, file capabilities) are never taken over: most writers lose
them in place too, and they do not belong to a content that came over a network.

The kernel itself would do the second part with O_TMPFILE, but CephFS does not know it; and a
temporary file with a name in the served folder would be seen there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from httpnas.storage import acl

_OURS = "user.httpnas"
#: The system may refuse; EINVAL is for owners that this user namespace has no number for.
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
#: What other programs have written down about a file is kept only where there is room for it.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE, errno.ENODATA)


@dataclass(frozen=True)
class Rights:
    """Who owns a file and who may do what with it.

    :ivar uid: the owner, None for whoever makes it.
    :ivar gid: the group.
    :ivar mode: the permission bits.
    :ivar acl: the access control list, None if the bits say it all.
    :ivar attributes: the user xattrs, without the daemon's own.
    """

    uid: int | None
    gid: int
    mode: int
    acl: bytes | None = None
    attributes: Mapping[str, bytes] = field(default_factory=dict)

    def in_another_group(self) -> Rights:
        """Return these rights for a file that has not got its group: nobody gains by that."""
        if self.acl is not None:
            narrow = acl.for_another_group(self.acl)
            return replace(self, acl=narrow, mode=acl.mode(narrow))
        shared = self.mode >> 3 & self.mode & 7
        return replace(self, mode=self.mode & 0o700 | shared << 3 | shared)


class Inheritance:
    """What the temporary file *fd* takes over when it becomes *leaf* in *folder*.

    :param fd: its descriptor; it must belong to this daemon, and have no list of its own.
    :param folder: descriptor of the folder.
    """

    def __init__(self, fd: int, folder: int, leaf: bytes) -> None:
        self._fd = fd
        self._folder = folder
        self._status = os.fstat(folder)
        self._leaf = leaf

    def moved_to(self, folder: int) -> bool:
        """Go on with the descriptor *folder*, or return False because that is another folder."""
        if not os.path.samestat(os.fstat(folder), self._status):
            return False
        self._folder = folder
        return True

    def take(self) -> None:
        """Give it to the file. The file's next sync makes that durable.

        :raises OSError: when the storage fails.
        """
        self._made = os.fstat(self._fd)
        self._replaced = self._stat()
        self._rights = self._find(self._replaced)
        _give(self._fd, self._made, self._rights)

    def renew(self) -> bool:
        """Take again what others have changed since :meth:`take`; call this under the name's lock.

        :return: whether it gave anything to the file, which must then be synced again.
        :raises OSError: when the storage fails.
        """
        replaced = self._stat()
        if _mark(replaced) == _mark(self._replaced) or self._find(replaced) == self._rights:
            return False
        _reset(self._fd, self._made.st_uid)
        self.take()
        return True

    def _stat(self) -> os.stat_result | None:
        try:
            status = os.stat(self._leaf, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if stat.S_ISREG(status.st_mode) else None

    def _find(self, replaced: os.stat_result | None) -> Rights:
        if replaced is None:
            return _of_new(self._made, self._folder)
        return _of_replaced(replaced, b"/proc/self/fd/%d/%s" % (self._folder, self._leaf))


def _mark(status: os.stat_result | None) -> tuple[int, ...] | None:
    """Return what is another one once somebody has changed or replaced the file."""
    if status is None:
        return None
    # The clock of the change time may be coarse, and so it is not asked alone.
    owner = (status.st_uid, status.st_gid, status.st_mode)
    return (status.st_dev, status.st_ino, status.st_ctime_ns, *owner)


def _of_replaced(status: os.stat_result, path: bytes) -> Rights:
    """Return the rights of the file at *path*, which may be one that we cannot open.

    Xattrs that cannot be listed may hide a list of rights (there is no /proc, say). Then only the
    owner keeps his.
    """
    rights = Rights(status.st_uid, status.st_gid, status.st_mode & 0o777)
    try:
        names = os.listxattr(path, follow_symlinks=False)
        own = _value(path, acl.ACCESS, follow_symlinks=False) if acl.ACCESS in names else None
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return rights
        return replace(rights, mode=rights.mode & 0o700)
    attributes = {}
    for name in names:
        if name.startswith("user.") and not name.startswith(_OURS):
            with contextlib.suppress(OSError):
                attributes[name] = os.getxattr(path, name, follow_symlinks=False)
    return replace(rights, acl=own, attributes=attributes)


def _of_new(made: os.stat_result, folder: int) -> Rights:
    """Return the rights that a file would have if it had been made in *folder*, where it is not."""
    status = os.fstat(folder)
    gid = status.st_gid if status.st_mode & stat.S_ISGID else _own_group(made)
    default = _value(folder, acl.DEFAULT)
    if default is None:
        return Rights(None, gid, _mode_of_new(made))
    own = acl.for_new_file(default)
    return Rights(None, gid, acl.mode(own), own)


def _own_group(made: os.stat_result) -> int:
    """Return the group of what this daemon makes, although *made* may have one of its folder."""
    gid = os.getegid()
    if gid == made.st_gid or made.st_uid != os.geteuid():
        return made.st_gid  # a network file system may have other numbers for us, and knows best
    return gid


def _mode_of_new(made: os.stat_result) -> int:
    """Return the permission bits of a new file: those of *made*, unless it was made for us only."""
    mode = made.st_mode & 0o777
    return mode if mode & 0o077 else 0o666 & ~_umask()


def _umask() -> int:
    """Return the process's umask (proc_pid_status(5)): umask(2) would change it for all threads."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o077


def _value(file: int | bytes, name: str, follow_symlinks: bool = True) -> bytes | None:
    try:
        return os.getxattr(file, name, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def _give(fd: int, made: os.stat_result, rights: Rights) -> None:
    """Give *rights* to the file *fd*, in an order in which nobody has too many at any time.

    The group comes before the bits that are for it, and the owner last, because only an owner may
    do the rest. Writing xattrs takes the right to write, which the old file may not have given.
    """
    if rights.gid != made.st_gid and not _done(os.fchown, fd, -1, rights.gid):
        rights = rights.in_another_group()
    mode = made.st_mode & 0o777
    if rights.acl is not None:
        list_ = acl.writable_by_owner(rights.acl)
        if _done(os.setxattr, fd, acl.ACCESS, list_):
            mode = acl.mode(list_)
        else:
            rights = replace(rights, mode=rights.mode & 0o700)
    for name, value in rights.attributes.items():
        _done(os.setxattr, fd, name, value, unless=_REFUSED + _NO_ROOM)
    if rights.mode != mode:
        _done(os.fchmod, fd, rights.mode)
    if rights.uid is not None and rights.uid != made.st_uid:
        _done(os.fchown, fd, rights.uid, -1)


def _done(call: Callable[..., None], *args: Any, unless: tuple[int, ...] = _REFUSED) -> bool:
    """Make *call*, and return False if the system refuses it."""
    try:
        call(*args)
    except OSError as error:
        if error.errno not in unless:
            raise
        return False
    return True


def _reset(fd: int, uid: int) -> None:
    """Take away from the file *fd* what was given to it, and give it back to its owner *uid*."""
    if os.fstat(fd).st_uid != uid:
        os.fchown(fd, uid, -1)
    os.fchmod(fd, 0o600)
    for name in os.listxattr(fd):
        if name == acl.ACCESS or (name.startswith("user.") and not name.startswith(_OURS)):
            os.removexattr(fd, name)
