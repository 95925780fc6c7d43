"""What is in a folder, in order, a page at a time.

A folder may hold millions of names. Sorting them in one call would hold Python's global lock,
and with it the reactor, for as long. So names are sorted in short runs, which are merged while the
listing is being read. By size or time of change only the places of a page are kept while the folder
is read, and it is read again for the next page.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from httpnas.storage import version
from httpnas.storage.records import Records
from httpnas.storage.root import PRIVATE
from httpnas.storage.version import Version

#: Names sorted in one call: about 5 ms.
_RUN = 16384
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class Place(NamedTuple):
    """Where an entry stands in an :class:`Order`, whether it is still there or not.

    :ivar value: size in bytes (-1 for a folder), or time of change in nanoseconds since the epoch;
        0 in the order of names.
    :ivar name: its component, which decides between equal values.
    """

    value: int
    name: bytes


#: What an order compares.
P = TypeVar("P", bytes, Place)


@dataclass(frozen=True, slots=True)
class Order:
    """In which order entries are listed.

    :ivar by: ``name``, ``size`` or ``mtime``.
    :ivar descending: whether it is turned round, names of equal values too.
    """

    by: str = "name"
    descending: bool = False

    def place(self, name: bytes, status: os.stat_result) -> Place:
        """Return where *name* stands by size or time, as *status* shows it."""
        if self.by == "mtime":
            return Place(status.st_mtime_ns, name)
        return Place(-1 if version.is_folder(status) else status.st_size, name)

    def first(self, count: int, places: Iterator[Place]) -> list[Place]:
        """Return the first *count* of *places* in this order, keeping no more of them."""
        pick = heapq.nlargest if self.descending else heapq.nsmallest
        return pick(count, places)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder.

    :ivar name: its component, UTF-8.
    :ivar is_folder: whether it is a folder (else it is a file).
    :ivar version: size, time of change and identity.
    """

    name: bytes
    is_folder: bool
    version: Version


class Folder:
    """An open folder; whoever has it closes it.

    :param fd: its descriptor.
    :param is_root: whether it is the storage root, in which the daemon's own folder is hidden.
    :param records: where the records of files are kept.
    """

    def __init__(self, fd: int, is_root: bool, records: Records) -> None:
        self.fd = fd
        self._is_root = is_root
        self._records = records

    def places(self, order: Order, after: Place | None, most: int) -> Iterator[Place]:
        """Yield the places of files and folders behind *after* (None: all) in *order*.

        :param most: how many are kept in memory by size or time; the folder is read anew when more
            are taken.
        :raises OSError: when the folder can not be read.
        """
        if order.by == "name":
            for name in self.names(after.name if after else b"", order.descending):
                yield Place(0, name)
            return
        while True:
            page = order.first(most, self._unsorted(order, after))
            yield from page
            if len(page) < most:
                return
            after = page[-1]

    def names(self, after: bytes = b"", descending: bool = False) -> Iterator[bytes]:
        """Yield the names of files and folders behind *after*, in the order of their bytes.

        Left out is what no request can name: links, special files, names that are not UTF-8 or
        hold control characters. All names are read before the first is yielded.

        :param after: ``b""`` for all.
        :param descending: turn the order round; then behind means less.
        :raises OSError: when the folder can not be read.
        """
        runs: list[list[bytes]] = []
        run: list[bytes] = []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if _is_behind(name, after, descending) and self._is_listed(entry, name):
                    run.append(name)
                    if len(run) == _RUN:
                        runs.append(sorted(run, reverse=descending))
                        run = []
        runs.append(sorted(run, reverse=descending))
        return heapq.merge(*runs, reverse=descending) if len(runs) > 1 else iter(runs[0])

    def _is_listed(self, entry: os.DirEntry[str], name: bytes) -> bool:
        if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
            return False
        return self._can_be_named(name)

    def _unsorted(self, order: Order, after: Place | None) -> Iterator[Place]:
        """Yield the places in *order* that are behind *after*, as the folder has them."""
        with os.scandir(self.fd) as entries:
            for entry in entries:
                place = self._place(os.fsencode(entry.name), order)
                if place is not None and _is_behind(place, after, order.descending):
                    yield place

    def _place(self, name: bytes, order: Order) -> Place | None:
        if not self._can_be_named(name):
            return None
        try:
            # Unlike this, an entry's own stat does not let other threads run in every Python.
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            os.fstat(self.fd)  # fails when it is the volume that is gone
            return None
        is_listed = version.is_file(status) or version.is_folder(status)
        return order.place(name, status) if is_listed else None

    def _can_be_named(self, name: bytes) -> bool:
        if self._is_root and name == PRIVATE:
            return False
        if _CONTROL.search(name):
            return False
        try:
            name.decode()
        except UnicodeDecodeError:
            return False
        return True

    def look(self, name: bytes) -> Entry | None:
        """Return what *name* is by now, or None when it is no file or folder any more.

        :raises OSError: when the volume is gone.
        """
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            if version.is_folder(status):
                return Entry(name, True, version.of_stat(status))
            if version.is_file(status):
                return Entry(name, False, version.committed_at(self.fd, name, self._records))
        except OSError:
            os.fstat(self.fd)
        return None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def _is_behind(place: P, after: P | None, descending: bool) -> bool:
    """Tell whether *place* comes behind *after*, of which an empty one stands before all."""
    if not after:
        return True
    return place < after if descending else place > after
