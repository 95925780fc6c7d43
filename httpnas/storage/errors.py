"""What can go wrong below the storage root, in the words of storage.

The doors turn these into answers in one table (:mod:`httpnas.web.problems`); nothing here knows
of HTTP. Every :exc:`OSError` leaves the storage layer as one of these, through :func:`translated`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class StorageError(Exception):
    """An operation on the storage failed; its text says what happened, for people."""


class NoSuchFile(StorageError):
    """Nothing a client can reach has this name (links and special files count as nothing)."""


class IsFolder(StorageError):
    """The name is a folder where a file is needed."""


class NotAFolder(StorageError):
    """A file stands where a folder is needed."""


class NameTaken(StorageError):
    """The destination exists already and may not be replaced."""


class IntoItself(StorageError):
    """A folder can not be moved into itself."""


class OtherFileSystem(StorageError):
    """The two ends lie on different file systems, so no rename can join them."""


class Reserved(StorageError):
    """The daemon's own folder, or the root itself: not for clients to change."""


class BadNameForFileSystem(StorageError):
    """The file system does not take this name."""


class StorageFull(StorageError):
    """No space, inodes or quota left."""


class NoRoom(StorageFull):
    """What a client has announced is more than is left."""


class FileTooLarge(StorageError):
    """The file system does not take a file of this size."""


class NotPermitted(StorageError):
    """The daemon may not do this here (permissions, or a read-only file system)."""


class StorageAway(StorageError):
    """The storage does not answer as it should just now; a later try may do."""


class StorageGone(StorageAway):
    """What was opened of the storage leads to it no more."""


class OutOfDescriptors(StorageAway):
    """The daemon or the machine has no descriptors or memory left just now."""


class Contended(StorageAway):
    """A lock could not be had in time."""


class StorageBroken(StorageError):
    """The storage reported an error that no retry mends (input/output errors above all)."""


_KINDS: dict[int, type[StorageError]] = {
    errno.ENOENT: NoSuchFile,
    errno.ENOTDIR: NoSuchFile,
    errno.ELOOP: NoSuchFile,
    errno.ENXIO: NoSuchFile,
    errno.EISDIR: IsFolder,
    errno.EEXIST: NameTaken,
    errno.ENOTEMPTY: NameTaken,
    errno.EXDEV: OtherFileSystem,
    errno.EBUSY: OtherFileSystem,
    errno.ENAMETOOLONG: BadNameForFileSystem,
    errno.EILSEQ: BadNameForFileSystem,
    errno.EINVAL: BadNameForFileSystem,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EMLINK: StorageFull,
    errno.EFBIG: FileTooLarge,
    errno.EACCES: NotPermitted,
    errno.EPERM: NotPermitted,
    errno.EROFS: NotPermitted,
    errno.ESTALE: StorageAway,
    errno.ESHUTDOWN: StorageAway,
    errno.ENOTCONN: StorageAway,
    errno.ETIMEDOUT: StorageAway,
    errno.EHOSTDOWN: StorageAway,
    errno.EAGAIN: StorageAway,
    errno.ENOLCK: StorageAway,
    errno.EMFILE: OutOfDescriptors,
    errno.ENFILE: OutOfDescriptors,
    errno.ENOMEM: OutOfDescriptors,
}


def translate(error: OSError) -> StorageError:
    """Return the storage error that *error* amounts to; an unknown one is :exc:`StorageBroken`."""
    kind = _KINDS.get(error.errno or 0, StorageBroken)
    return kind(f"{error.strerror or error}")


@contextmanager
def translated() -> Iterator[None]:
    """Let every :exc:`OSError` of the block leave it as a :exc:`StorageError`."""
    try:
        yield
    except OSError as error:
        raise translate(error) from error
