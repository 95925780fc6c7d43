"""Writing the content of an open file."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from httpnas.storage.errors import StorageBroken

_IOV_MAX = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024
#: Bytes copied in one call.
_COPY = 8 << 20
_NOT_BY_THE_KERNEL = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP)


def write_all(fd: int, chunks: Sequence[bytes], offset: int | None = None) -> None:
    """Write all of *chunks* to *fd*, in as many calls as that takes (writev(2), pwritev(2)).

    :param offset: where to write, in bytes; None for the descriptor's own position.
    :raises OSError: when a call fails. Some chunks may have been written by then.
    """
    views = [memoryview(chunk) for chunk in chunks if chunk]
    while views:
        batch = views[:_IOV_MAX]
        if offset is None:
            written = os.writev(fd, batch)
        else:
            written = os.pwritev(fd, batch, offset)
            offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


def copy(source: int, target: int, offset: int, length: int) -> None:
    """Copy the first *length* bytes of *source* to *target*, in the kernel if it can.

    :param offset: where in *target* to write, in bytes.
    :raises StorageBroken: when *source* has fewer bytes.
    :raises OSError: as copy_file_range(2), pread(2) and pwritev(2).
    """
    done = 0
    in_kernel = hasattr(os, "copy_file_range")
    while done < length:
        wanted = min(_COPY, length - done)
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, wanted, done, offset + done)
            except OSError as error:
                if error.errno not in _NOT_BY_THE_KERNEL:
                    raise
                in_kernel = False
                continue
        else:
            chunk = os.pread(source, wanted, done)
            write_all(target, [chunk], offset + done)
            copied = len(chunk)
        if not copied:
            raise StorageBroken("what was staged is not there any more")
        done += copied
