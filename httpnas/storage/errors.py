"""What can go wrong below the storage root, in the words of storage.

The doors turn these errors into answers in one table (:mod:`httpnas.web.problems`). Nothing here
knows of HTTP.

An :exc:`OSError` leaves the public methods of ``Storage``, ``StoredFile``, ``Upload``, ``Append``,
``Folder`` and ``Volume`` as one of these errors, through :func:`translated`. It stays what it is in
two places: inside this package, where functions work on descriptors; and in
:mod:`httpnas.transfer`, which reads opened files by their descriptors. Those who catch it there
ask :func:`translate` which of these errors it amounts to.
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


class WrongOffset(StorageError):
    """The file does not have the length that the client expects.

    :ivar actual: its length in bytes.
    """

    def __init__(self, actual: int) -> None:
        super().__init__(f"the file has {actual} bytes")
        self.actual = actual


class KeyReused(StorageError):
    """The idempotency key is that of an append with another body."""


class IntoItself(StorageError):
    """A folder cannot be moved into itself."""


class OtherFileSystem(StorageError):
    """No rename can join the two ends: a mount, a quota or a layer divides them."""


class Reserved(StorageError):
    """The daemon's own folder, or the root itself: not for clients to change."""


class BadNameForFileSystem(StorageError):
    """The file system does not take this name."""


class StorageFull(StorageError):
    """No space, inodes or quota is left."""


class NoRoom(StorageFull):
    """A client has announced more than there is space left for."""


class FileTooLarge(StorageError):
    """The file system does not take a file of this size."""


class NotPermitted(StorageError):
    """The daemon may not do this here (permissions, or a read-only file system)."""


class StorageAway(StorageError):
    """The storage does not answer as it should just now. A later try may succeed."""


class StorageGone(StorageAway):
    """What is open of the storage does not lead to it any more."""


class OutOfDescriptors(StorageAway):
    """The daemon or the machine has no descriptors or memory left just now."""


class Contended(StorageAway):
    """Others held a lock for too long, or were in the way in another manner."""


class StorageBroken(StorageError):
    """The storage reported an error that no retry mends (input/output errors above all)."""


class NotFreed(StorageBroken):
    """A part of what was removed cannot be freed by this daemon."""


class OtherFormat(StorageBroken):
    """The daemon's own folder is in a format that this version does not work with."""


class FileCutShort(StorageError):
    """Somebody has cut a file short, behind the daemon's back, while it was being read."""


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
    """Return the storage error that *error* amounts to, :exc:`StorageBroken` when unknown."""
    kind = _KINDS.get(error.errno or 0, StorageBroken)
    return kind(f"{error.strerror or error}")


@contextmanager
def translated() -> Iterator[None]:
    """Let every :exc:`OSError` of the block leave it as a :exc:`StorageError`."""
    try:
        yield
    except OSError as error:
        raise translate(error) from error
