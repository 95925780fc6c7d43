"""What of a file is in memory: mincore(2) tells, page by page, and reads nothing."""

from __future__ import annotations

import ctypes
import mmap
import os

_FAILED = ctypes.c_void_p(-1).value
#: Only the lowest bit of each byte that mincore(2) gives means anything.
_LOWEST_BIT = bytes(number & 1 for number in range(256))

_libc = ctypes.CDLL(None)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def tells(fd: int) -> bool:
    """Tell whether :func:`cached` can be believed about the open file *fd*.

    The kernel answers only its owner and those who may write it; to all others it says that
    everything is in memory. A file system whose reads cannot be asked not to wait (RWF_NOWAIT of
    preadv2(2)), such as CephFS, may wait for others even for what is in memory.
    """
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        pass
    except OSError:
        return False
    owned = os.fstat(fd).st_uid == os.geteuid()
    return owned or os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)


def cached(fd: int, offset: int, length: int) -> int:
    """Return how many bytes of the open file *fd* are in memory, one after the other.

    :param offset: where to begin, in bytes.
    :param length: the most bytes to ask about, at least one.
    """
    before = offset % mmap.PAGESIZE
    size = before + length
    address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset - before)
    if address == _FAILED:
        return 0
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    failed = _mincore(address, size, pages)
    _munmap(address, size)
    if failed:
        return 0
    absent = pages.raw.translate(_LOWEST_BIT).find(0)
    return length if absent < 0 else max(0, absent * mmap.PAGESIZE - before)
