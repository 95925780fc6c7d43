"""POSIX access control lists as the kernel keeps them: in xattrs, in a form of its own (acl(5)).

They are worked out here because a file is not made in the folder that it will appear in, and so
the kernel does not do it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

#: The xattr of a file's own list.
ACCESS = "system.posix_acl_access"
#: The xattr of a folder's list for what is made in it.
DEFAULT = "system.posix_acl_default"

_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


def for_new_file(default: bytes) -> bytes:
    """Return the list that a file made with mode 0666 has in a folder with the list *default*."""
    bound = _MASK if _find(default, _MASK) is not None else _GROUP_OBJ
    return _changed(default, lambda tag, p: p & 6 if tag in (_USER_OBJ, bound, _OTHER) else p)


def for_another_group(acl: bytes) -> bytes:
    """Return *acl* for a file that has not got its group: nobody gains anything by that.

    The members of the group that it has now may do no more than others, and the others, who have
    become more, no more than that group.
    """
    group, other = _find(acl, _GROUP_OBJ) or 0, _find(acl, _OTHER) or 0
    mask = _find(acl, _MASK)
    shared = group & other & (7 if mask is None else mask)
    return _changed(acl, lambda tag, p: shared if tag in (_GROUP_OBJ, _OTHER) else p)


def writable_by_owner(acl: bytes) -> bytes:
    """Return *acl* with the owner allowed to read and write."""
    return _changed(acl, lambda tag, p: p | 6 if tag == _USER_OBJ else p)


def mode(acl: bytes) -> int:
    """Return the permission bits that go with *acl*: those of the group show its mask."""
    mask = _find(acl, _MASK)
    group = _find(acl, _GROUP_OBJ) if mask is None else mask
    return (_find(acl, _USER_OBJ) or 0) << 6 | (group or 0) << 3 | (_find(acl, _OTHER) or 0)


def _find(acl: bytes, wanted: int) -> int | None:
    return next((permissions for tag, permissions, _ in _entries(acl) if tag == wanted), None)


def _entries(acl: bytes) -> Iterator[tuple[int, int, int]]:
    return _ENTRY.iter_unpack(acl[_HEADER.size :])


def _changed(acl: bytes, change: Callable[[int, int], int]) -> bytes:
    entries = [_ENTRY.pack(tag, change(tag, p), who) for tag, p, who in _entries(acl)]
    return acl[: _HEADER.size] + b"".join(entries)
