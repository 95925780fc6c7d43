"""What statx(2) tells of an open file that fstat(2) does not. Functions raise :exc:`OSError`."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_NUMBER = {"x86_64": 332, "aarch64": 291}.get(platform.machine())
_AT_EMPTY_PATH = 0x1000
_BTIME, _MNT_ID = 0x800, 0x1000
#: What old kernels and container runtimes say that do not know the call or forbid it.
_UNKNOWN = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL)
_MASK = struct.Struct("=I")
#: Where stx_btime (with its nanoseconds) and stx_mnt_id are in struct statx.
_BTIME_AT, _BTIME_FORM = 80, struct.Struct("=qI")
_MNT_ID_AT, _MNT_ID_FORM = 144, struct.Struct("=Q")

_libc = ctypes.CDLL(None, use_errno=True)


def birth(fd: int) -> int:
    """Return the time of birth of the file *fd* in nanoseconds, 0 where there is none."""
    seconds, nanoseconds = _asked(fd, _BTIME, _BTIME_FORM, _BTIME_AT) or (0, 0)
    return seconds * 1_000_000_000 + nanoseconds


def mount(fd: int) -> int:
    """Return the number of the mount that *fd* was opened in, 0 where there is none (Linux 5.8)."""
    (number,) = _asked(fd, _MNT_ID, _MNT_ID_FORM, _MNT_ID_AT) or (0,)
    return number


def _asked(fd: int, wanted: int, form: struct.Struct, at: int) -> tuple[int, ...] | None:
    if _NUMBER is None:
        return None
    buffer = ctypes.create_string_buffer(256)
    if _libc.syscall(_NUMBER, fd, b"", _AT_EMPTY_PATH, wanted, buffer) != 0:
        code = ctypes.get_errno()
        if code in _UNKNOWN:
            return None
        raise OSError(code, os.strerror(code))
    return form.unpack_from(buffer, at) if _MASK.unpack_from(buffer)[0] & wanted else None
