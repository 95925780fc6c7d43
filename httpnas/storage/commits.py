"""What of a file counts, and how what is added to it becomes true.

An append writes behind the end of the file itself, since others read plain files. Its *record*
(:mod:`httpnas.storage.record`) says beforehand what will be added: how many bytes, and their
checksum. Then the bytes are written, and synced once together with the record. After that the
record is *settled*, which need not be synced: whatever a crash leaves can be judged.

- The bytes that were announced are all there: the append has become true, and is *completed*.
- Some of them are there, and nothing else: the append is *undone*, the file is cut back.
- Anything else: others have changed the file since. The announcement is *void*. Nothing that we
  did not write is ever hidden or cut.

To know that what is there is a part of what was announced, the record has a checksum for each block
of it: a write(2) which is killed ends where a page does, and a power cut may leave zeros in place
of blocks. What is larger is staged in a file of its own first, and compared with that.

Readers take no lock. While an announcement pends they see the version before it, as long as it is
being written: the file is locked (on a network, where that costs two round trips, only if it has to
be), and the daemon lives that has announced it. When its writer has died they judge it in the same
way: it may be acknowledged, if all of it is there, and is brought to stable storage before they
show it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from functools import cache
from itertools import islice, pairwise
from typing import NamedTuple

from httpnas.storage.descriptors import owned
from httpnas.storage.facts import Facts
from httpnas.storage.record import PAGE, Pending, Record, fits, nearly_fits
from httpnas.storage.records import Records
from httpnas.storage.root import READ
from httpnas.storage.version import Version, is_file, of_stat

#: Blocks that an append may touch whose record has a checksum for each.
MOST_BLOCKS = 64
_SECOND = 1_000_000_000
_LOCK_TRIES = 5
#: A file that others may still write to by mmap(2) is not written back for so many seconds.
_WRITTEN_BACK = 60
_SECTOR = 512
_CHUNK = 1 << 20
#: How many bytes others may have put before an append for it to be found behind them.
_SHIFTED = 1 << 16
#: How many places that look right are looked at whole.
_LIKELY = 16


class Known(NamedTuple):
    """What is known of an open file.

    :ivar version: the latest version that is wholly there.
    :ivar record: the file's record; None when it has none, or one of another file.
    """

    version: Version
    record: Record | None

    @property
    def facts(self) -> Facts:
        """The facts about the version."""
        record = self.record
        if record is None or record.version != self.version:
            return Facts()
        return Facts(record.lines, record.digests)


class Undecided(Exception):
    """What has become of an announcement is not known without reading what it is about."""


class Verdict(Enum):
    """What has become of an announcement whose writer is gone."""

    COMPLETE = "all of it is there"
    TORN = "some of it is there and nothing else"
    VOID = "others have changed the file since"


def is_locked(fd: int) -> bool:
    """Tell whether somebody holds flock(2) on the open file *fd*, by another description of it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def lock(fd: int) -> bool:
    """Take flock(2) on the open file *fd* if nobody has it for long, and tell whether it is taken.

    Closing *fd* gives it back. Readers that ask :func:`is_locked` hold it for a moment.
    """
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.001)
    return False


def known(
    fd: int, records: Records, at_once: bool = False, status: os.stat_result | None = None
) -> Known:
    """Return what is known of the open file *fd*.

    A commit may begin or end between two calls. Only two equal results of fstat(2), with no
    pending record between them, prove that there was no commit.

    :param at_once: whether to give up when the content would have to be read.
    :param status: what fstat(2) has just told of it, if it was asked.
    :raises Undecided: when that is so.
    """
    before = status or os.fstat(fd)
    while True:
        record = records.read(fd)
        after = os.fstat(fd)
        if record is not None and record.pending is not None:
            version = _while_pending(fd, record, record.pending, after, records, at_once)
            if version is not None:
                return Known(version, record)
        elif of_stat(after) == of_stat(before):
            # The last name that goes sets the time of change; and a record that is locked and does
            # not fit yet is about to be written again.
            if fits(record, after) or (
                nearly_fits(record, after) and (not after.st_nlink or is_locked(fd))
            ):
                return Known(record.version, record)
            return Known(of_stat(after), record)
        before = after


def _while_pending(
    fd: int,
    record: Record,
    pending: Pending,
    status: os.stat_result,
    records: Records,
    at_once: bool,
) -> Version | None:
    """Return the version that counts while *pending* does not, or None when it has ended since."""
    if record.size <= status.st_size and _is_at_work(fd, record, pending, status, records):
        return record.version
    if records.read(fd) != record:
        return None
    if at_once:
        raise Undecided
    with records.staged(pending.staged) as staged:
        verdict = judge(fd, record, pending, status, staged)
    if verdict is Verdict.COMPLETE:
        records.sync(fd)
        return Version(status.st_size, status.st_mtime_ns, record.inode, pending.stamp)
    return of_stat(status) if verdict is Verdict.VOID else without(record, status)


def _is_at_work(
    fd: int, record: Record, pending: Pending, status: os.stat_result, records: Records
) -> bool:
    """Tell whether *pending* is being made true, by a daemon that lives.

    The file is locked then, as it is while the daemon of a dead one mends it. On a network, it
    mostly is not. There at most what has been announced is there.
    """
    if records.change_times:
        return is_locked(fd) and records.is_at_work(pending.staged)
    there = status.st_size - record.size
    return there <= pending.added and records.is_at_work(pending.staged)


def without(record: Record, status: os.stat_result) -> Version:
    """Return the version that a file has without the torn part that *record* announces.

    It is none of ours: others may have changed what lies before that part.
    """
    return replace(of_stat(status), size=record.size)


def version_at(
    folder: int, leaf: bytes, records: Records, status: os.stat_result | None = None
) -> Version:
    """Return the latest version of *leaf* in *folder* that is wholly there.

    :param status: as lstat(2) gives it, if that is known.
    :raises FileNotFoundError: when there is nothing.
    """
    status = status or os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    if not is_file(status):
        return of_stat(status)
    try:
        fd = os.open(leaf, READ | os.O_NOFOLLOW, dir_fd=folder)
    except PermissionError:
        return of_stat(status)  # what cannot be read can still be replaced
    with owned(fd):
        return known(fd, records).version


# Judging what a crash has left


def judge(
    fd: int, record: Record, pending: Pending, status: os.stat_result, staged: int | None = None
) -> Verdict:
    """Return what has become of what *record* announces for the open file *fd*.

    :param staged: the descriptor of the file that ends with the added bytes, if it is there.
    """
    there = status.st_size - record.size
    if not 0 <= there <= pending.added:
        return Verdict.VOID
    if there == 0:
        return Verdict.TORN if pending.added else Verdict.COMPLETE
    if there == pending.added and checksum(fd, record.size, there) == pending.checksum:
        return Verdict.COMPLETE
    is_ours = _is_ours(fd, record, pending, there, staged)
    return Verdict.TORN if is_ours else Verdict.VOID


def shifted(
    fd: int, record: Record, pending: Pending, status: os.stat_result, staged: int | None = None
) -> int:
    """Return by how many bytes others have come before what *record* announces.

    A local append lands behind whatever has the end in that moment. Returned is 0 as well when it
    is not there at all.

    :param staged: the descriptor of the file that ends with the added bytes, if it is there.
    """
    added = pending.added
    length = _ends(record.size, added, pending.block or PAGE)[0] if added else 0
    if pending.blocks:
        wanted = pending.blocks[0]
    elif staged is not None:
        start = os.fstat(staged).st_size - added
        wanted = zlib.crc32(os.pread(staged, length, max(start, 0)))
    else:
        return 0
    most = min(status.st_size - record.size - added, _SHIFTED)
    tail = os.pread(fd, max(most, 0) + length, record.size)
    likely = (by for by in range(most + 1) if zlib.crc32(tail[by : by + length]) == wanted)
    for by in islice(likely, _LIKELY):
        if checksum(fd, record.size + by, added) == pending.checksum:
            return by
    return 0


def block_sums(content: bytes, offset: int, block: int) -> tuple[int, ...]:
    """Return the CRC-32 of each block of *content*, which lies at *offset* in its file."""
    ends = _ends(offset, len(content), block)
    return tuple(zlib.crc32(content[at:end]) for at, end in pairwise([0, *ends]))


def _ends(offset: int, length: int, block: int) -> list[int]:
    """Return where blocks end in *length* bytes at *offset*, as numbers of these bytes."""
    return [*range(block - offset % block, length, block), length]


def _is_ours(fd: int, record: Record, pending: Pending, there: int, staged: int | None) -> bool:
    """Tell whether the *there* bytes behind the record's size are of what was announced.

    A power cut may have left zeros in place of some.
    """
    zeros = pending.boot != boot()
    if staged is not None:
        start = os.fstat(staged).st_size - pending.added
        return start >= 0 and same(fd, record.size, staged, start, there, zeros)
    ends = _ends(record.size, pending.added, pending.block or PAGE)
    if len(ends) != len(pending.blocks):
        return False
    tail = os.pread(fd, there, record.size)
    for (at, end), checksum in zip(pairwise([0, *ends]), pending.blocks, strict=True):
        found = tail[at:end]
        is_whole = len(found) == end - at and zlib.crc32(found) == checksum
        if not (is_whole or not found or (zeros and not any(found))):
            return False
    return True


def same(one: int, offset: int, other: int, start: int, length: int, zeros: bool = False) -> bool:
    """Tell whether *length* bytes of *one* at *offset* are those of *other* at *start*.

    :param zeros: whether a stretch of zeros will do as well.
    """
    for at in range(0, length, _CHUNK):
        count = min(_CHUNK, length - at)
        found, wanted = os.pread(one, count, offset + at), os.pread(other, count, start + at)
        if found != wanted and not (zeros and _is_all_but_zeros(found, wanted, offset + at)):
            return False
    return True


def _is_all_but_zeros(found: bytes, wanted: bytes, offset: int) -> bool:
    """Tell whether each sector of *found*, which lies at *offset*, is of *wanted* or zero."""
    sectors = pairwise([0, *_ends(offset, len(found), _SECTOR)])
    return all(found[at:end] in (wanted[at:end], bytes(end - at)) for at, end in sectors)


def checksum(fd: int, offset: int, length: int) -> int:
    """Return the CRC-32 of *length* bytes of *fd* at *offset*."""
    value = 0
    for at in range(0, length, _CHUNK):
        value = zlib.crc32(os.pread(fd, min(_CHUNK, length - at), offset + at), value)
    return value


@cache
def boot() -> int:
    """Return a number that stands for this run of the machine, 0 where it has none (proc(5))."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
        return int(boot_id.read().strip().replace("-", "")[:15], 16)
    return 0


def may_be_mapped(fd: int) -> bool:
    """Tell whether somebody may change the open file *fd* in memory, unseen by its change time.

    Nobody does who does not have it open for writing, which a read lease tells (fcntl(2)). Where
    there are no leases, a file is left in peace that was changed in the last minute.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default, and SIGIO is not
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return time.time_ns() - os.fstat(fd).st_mtime_ns < _WRITTEN_BACK * _SECOND
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
