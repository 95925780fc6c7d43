"""Mending what a writer has left that died in the middle of an append."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from dataclasses import replace

from httpnas.storage import commits, version
from httpnas.storage.commits import Verdict, without
from httpnas.storage.descriptors import handed_over, owned
from httpnas.storage.errors import NoSuchFile, StorageError, translated
from httpnas.storage.ledger import Ledger, ledger_of
from httpnas.storage.locks import Claim, Locked
from httpnas.storage.namespace import Namespace
from httpnas.storage.record import Record
from httpnas.storage.root import READ, WRITE, split
from httpnas.storage.version import of_stat

#: Of open(2): there is nothing, or no file, or one that may not be opened or not be changed.
_NOT_OPENED = (
    errno.ENOENT,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.EACCES,
    errno.EPERM,
    errno.ETXTBSY,
)


def repair(namespace: Namespace, name: bytes) -> bool:
    """Recover the file *name*, which a dead daemon was appending to.

    :return: whether nothing of that pends any more, so that what was staged for it can go. It may
        be too early for that: others have the lock, or the storage fails.
    """
    try:
        with translated(), owned(namespace.open_holder(name)) as folder:
            leaf = split(name)[1]
            record = _record_of(namespace, folder, leaf)
            if record is None or record.pending is None:
                return True
            with closing(namespace.claim()) as claim, namespace.hold(claim, (folder, name)):
                record = recovered_at(namespace, folder, leaf)
            return record is None or record.pending is None
    except NoSuchFile:
        return True
    except (StorageError, Locked):
        return False


def recovered_at(namespace: Namespace, folder: int, leaf: bytes) -> Record | None:
    """Return the record of the file *leaf* in *folder*, where nothing of the dead pends any more.

    None when there is no such file, or none that has a record.
    """
    record = _record_of(namespace, folder, leaf)
    if record is None or record.pending is None:
        return record
    fd = open_file(folder, leaf, WRITE)
    if fd is None:
        return record
    with owned(fd):
        # It may be appended to by another name that it has.
        return recover(namespace, fd).record if commits.lock(fd) else record


def _record_of(namespace: Namespace, folder: int, leaf: bytes) -> Record | None:
    fd = open_file(folder, leaf, READ)
    if fd is None:
        return None
    with owned(fd):
        return namespace.records.read(fd)


def open_file(folder: int, leaf: bytes, flags: int) -> int | None:
    """Open the file *leaf* in *folder*, None when it is no file or may not be opened in that way.

    :raises OSError: when it cannot be opened.
    """
    try:
        fd = os.open(leaf, flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_OPENED:
            return None
        raise
    with handed_over(fd):
        if version.is_file(os.fstat(fd)):
            return fd
    os.close(fd)
    return None


def recover(namespace: Namespace, fd: int, claim: Claim | None = None) -> Ledger:
    """Complete, undo or void what a writer that died has announced for the file *fd*.

    The file's lock must be held.

    :param claim: begins again when the writer lives: others have moved the file meanwhile, or
        made another name of it.
    :raises Locked: when that is so.
    """
    records = namespace.records
    ledger, status = ledger_of(fd, records), os.fstat(fd)
    record = ledger.record
    if record is None or record.pending is None:
        return ledger
    pending = record.pending
    if claim is not None and not namespace.volume.is_local and records.is_at_work(pending.staged):
        claim.begin_again()
    with records.staged(pending.staged) as staged:
        verdict = commits.judge(fd, record, pending, status, staged)
    if verdict is Verdict.COMPLETE:
        namespace.sync(fd)
        # Its lines are not those that were announced when others have changed what lies before.
        record = replace(record, size=status.st_size, stamp=pending.stamp, lines=None)
        record = replace(record, foreign_ctime_ns=None, digests={}, pending=None)
    elif verdict is Verdict.TORN:
        if status.st_size > record.size:
            os.ftruncate(fd, record.size)
            namespace.sync(fd)
        record = record.about(without(record, status))
    else:
        # What was announced may be there all the same, with something of others before or behind
        # it. Then its keys count, which their checksums tell.
        namespace.sync(fd)
        with records.staged(pending.staged) as staged:
            by = commits.shifted(fd, record, pending, status, staged)
        record = record.completed(by).about(of_stat(status))
    ledger.settle(replace(record, mtime_ns=os.fstat(fd).st_mtime_ns))
    return ledger
