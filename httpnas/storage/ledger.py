"""The record of one file that is open for changing, and the writing of it."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from httpnas.storage.record import ANY_TIME, LARGEST, Record, fits, nearly_fits
from httpnas.storage.records import Records
from httpnas.storage.version import Version, of_stat

#: How often a record is written again because its time did not fit.
_TRIES = 5
#: Of clock_gettime(2); advances every few milliseconds only.
_CLOCK_REALTIME_COARSE = 5
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE)


@dataclass
class Ledger:
    """The record of one file that is open for changing, under its lock.

    :param fd: the file.
    :ivar record: the record as it is on disk; None while the file has none of its own.
    :ivar version: the version that the file has.
    """

    fd: int
    records: Records
    version: Version
    record: Record | None

    @property
    def base(self) -> Record:
        """A record about the file's version, with what is known of it; nothing pends."""
        record = self.record
        if record is None:
            birth = self.records.birth(self.fd)
            version = self.version
            return Record(
                version.inode,
                birth,
                version.size,
                version.mtime_ns,
                ANY_TIME,
                version.stamp,
                version.foreign_ctime_ns,
            )
        return record.settled if record.version == self.version else record.about(self.version)

    def announce(self, record: Record) -> None:
        """Write down *record*, in which something pends."""
        keys = 0 if record.pending is None else record.pending.keys
        self.record = _write_with_room(self.fd, record, self.records, keys)

    def settle(self, record: Record, keys: int = 0) -> None:
        """Write down *record* about the version that the file has now.

        It is written again when its time does not fit the change time that the file system gave
        it, by whatever clock that goes.

        :param keys: how many of its last keys it must have.
        """
        at_ns = _clock_ns() if self.records.touch_file else os.fstat(self.fd).st_ctime_ns
        if not self.records.change_times:
            at_ns = ANY_TIME
        for _ in range(_TRIES):
            record = _write_with_room(self.fd, replace(record, at_ns=at_ns), self.records, keys)
            self.record, self.version = record, record.version
            misfit = self._misfit()
            if misfit is None:
                break
            at_ns = misfit

    def confirm(self) -> None:
        """Write the record again when the change time has moved since, as a new name lets it.

        Without that the version has another tag, so that it is no failure when it cannot be done.
        """
        with suppress(OSError):
            if self.record is not None and self._misfit() is not None:
                self.settle(self.record)

    def _misfit(self) -> int | None:
        """Return the change time when that is all that the record does not fit."""
        try:
            status = os.fstat(self.fd)
        except OSError:
            return None  # what is written is written
        record = self.record
        is_off = nearly_fits(record, status) and not fits(record, status)
        return status.st_ctime_ns if is_off else None


def _clock_ns() -> int:
    """Return the time by the clock that file systems use for the change time."""
    try:
        return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
    except OSError:
        return time.time_ns()


def _write_with_room(fd: int, record: Record, records: Records, keys: int) -> Record:
    """Write *record*, with fewer old keys, then without digests, when there is no room for all.

    :param keys: how many of the last ones are not old.
    :return: what was written.
    """
    while True:
        try:
            if len(record.encode()) > LARGEST:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
            records.write(fd, record)
        except OSError as error:
            older = len(record.keys) - keys
            if error.errno not in _FULL or not (older or record.digests):
                raise
            record = (
                replace(record, keys=record.keys[(older + 1) // 2 :])
                if older
                else replace(record, digests={})
            )
        else:
            return record


def ledger_of(fd: int, records: Records) -> Ledger:
    """Return the ledger of the file *fd*, as it is."""
    record, status = records.read(fd), os.fstat(fd)
    return Ledger(fd, records, record.version if fits(record, status) else of_stat(status), record)


def next_stamp(record: Record | None) -> int:
    """Return a stamp for a new version: the time, unless an earlier one was not earlier."""
    now = time.time_ns()
    if record is None or record.foreign_ctime_ns is not None:
        return now
    return max(now, record.stamp + 1)
