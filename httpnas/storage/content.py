"""Writing the content of an open file."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from httpnas.storage.errors import Contended, StorageBroken

_IOV_MAX = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024
#: Bytes copied in one call.
_COPY = 8 << 20
#: What copy_file_range(2) says where it is not known, is forbidden (EPERM or EACCES by seccomp), or
#: does not work (EIO, EBADF, ENOENT and ETXTBSY on some network mounts). What is really broken is
#: met again by reading or writing.
_NOT_BY_THE_KERNEL = (
    errno.ENOSYS,
    errno.EXDEV,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
    errno.EIO,
    errno.EBADF,
    errno.ENOENT,
    errno.ETXTBSY,
)
_PAGE = mmap.ALLOCATIONGRANULARITY
#: Whole pages that one write(2) takes, and that even 32 bits have addresses for.
_ONE_WRITE = min(0x7FFFF000, sys.maxsize >> 2) // _PAGE * _PAGE
#: Of ioctl_ficlonerange(2); Python has it since 3.12.
_FICLONERANGE: int = getattr(fcntl, "FICLONERANGE", 0x4020940D)
_CLONE_RANGE = struct.Struct("=qQQQ")

#: Writes some of what it is given, and returns how many bytes.
_Write = Callable[[Sequence[memoryview]], int]


def write_all(fd: int, chunks: Sequence[bytes], offset: int | None = None) -> None:
    """Write all of *chunks* to *fd*, in as many calls as that takes (writev(2), pwritev(2)).

    :param offset: where to write, in bytes; None for the descriptor's own position.
    :raises OSError: when a call fails. Some chunks may have been written by then.
    """
    done = 0

    def write(views: Sequence[memoryview]) -> int:
        nonlocal done
        written = os.writev(fd, views) if offset is None else os.pwritev(fd, views, offset + done)
        done += written
        return written

    _write(chunks, write)


def append_all(fd: int, chunks: Iterable[bytes | memoryview]) -> int:
    """Write *chunks* behind the end that *fd* has in that moment, whoever else appends to it.

    With ``O_APPEND``, of which a local file system makes one step for each write(2).

    :return: where they begin now, in bytes.
    :raises Contended: when others have appended in the middle of them.
    :raises OSError: as writev(2). Some chunks may have been written by then.
    """
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    begin = end = -1

    def write(views: Sequence[memoryview]) -> int:
        nonlocal begin, end
        written = os.writev(fd, views)
        at = os.lseek(fd, 0, os.SEEK_CUR) - written
        if end < 0:
            begin = at
        elif at != end:
            raise Contended("others have appended in the middle of it")
        end = at + written
        return written

    for chunk in chunks:
        _write([chunk], write)
    return begin


def mapped(fd: int, offset: int) -> Iterator[memoryview]:
    """Yield what *fd* has behind *offset*, each as large as one write(2) can take.

    It is mapped into memory, so that it takes none but that of the page cache (mmap(2)).
    """
    end = os.fstat(fd).st_size
    while offset < end:
        skipped = offset % _PAGE
        length = min(end - offset + skipped, _ONE_WRITE)
        pages = mmap.mmap(fd, length, prot=mmap.PROT_READ, offset=offset - skipped)
        yield memoryview(pages)[skipped:]
        offset += length - skipped


def _write(chunks: Iterable[bytes | memoryview], write: _Write) -> None:
    views = [memoryview(chunk) for chunk in chunks if chunk]
    first = 0
    while first < len(views):
        written = write(views[first : first + _IOV_MAX])
        while first < len(views) and written >= len(views[first]):
            written -= len(views[first])
            first += 1
        if written:
            views[first] = views[first][written:]


def share(source: int, target: int, offset: int) -> None:
    """Let *target* have the content of *source* at *offset*, both as the same blocks on disk.

    See ioctl_ficlonerange(2). It is one step for who reads *target* while its end is in the last
    block before *offset*, and keeps what others have put behind that.

    :param offset: where a block begins.
    :raises OSError: when it cannot be done.
    """
    length = os.fstat(source).st_size
    fcntl.ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, 0, length, offset))


def copy(source: int, start: int, target: int, offset: int) -> None:
    """Copy what *source* has behind *start* to *target*, in the kernel if it can.

    :param offset: where in *target* to write, in bytes.
    :raises StorageBroken: when *source* becomes shorter.
    :raises OSError: as copy_file_range(2), pread(2) and pwritev(2).
    """
    done, length = 0, os.fstat(source).st_size - start
    in_kernel = hasattr(os, "copy_file_range")
    while done < length:
        wanted = min(_COPY, length - done)
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, wanted, start + done, offset + done)
            except OSError as error:
                if error.errno not in _NOT_BY_THE_KERNEL:
                    raise
                in_kernel = False
                continue
        else:
            chunk = os.pread(source, wanted, start + done)
            write_all(target, [chunk], offset + done)
            copied = len(chunk)
        if not copied:
            raise StorageBroken("what was staged is not there any more")
        done += copied
