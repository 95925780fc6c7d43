"""What is in a folder, in order, a page at a time.

A folder may hold millions of names. Sorting them in one call would hold Python's global lock, and
with it the reactor, for all that time. So names are sorted in short runs, which are merged while
the listing is being read. In the order of size or time of change only the places of one page are
kept while the folder is read. It is read again for the next page.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from httpnas.storage import commits, version
from httpnas.storage.errors import translated
from httpnas.storage.records import Records
from httpnas.storage.root import PRIVATE
from httpnas.storage.version import Version

#: Names sorted in one call, which takes about 5 ms.
_RUN = 16384
#: How many entries are read from one look whether they are still wanted to the next.
_BETWEEN = 512
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class Place(NamedTuple):
    """Where an entry stands in an :class:`Order`, even when it is not there any more.

    :ivar value: size in bytes (-1 for a folder), or time of change in nanoseconds since the epoch;
        0 in the order of names.
    :ivar name: its last component, which decides between equal values.
    """

    value: int
    name: bytes


#: What an order compares.
P = TypeVar("P", bytes, Place)


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which entries are listed.

    :ivar by: ``name``, ``size`` or ``mtime``.
    :ivar descending: whether it is reversed, for names of equal values too.
    """

    by: str = "name"
    descending: bool = False

    def place(self, name: bytes, status: os.stat_result) -> Place:
        """Return the place of *name* by the size or time that *status* shows."""
        if self.by == "mtime":
            return Place(status.st_mtime_ns, name)
        return Place(-1 if version.is_folder(status) else status.st_size, name)

    def first(self, count: int, places: Iterator[Place]) -> list[Place]:
        """Return the first *count* of *places* in this order; no more are kept in memory."""
        pick = heapq.nlargest if self.descending else heapq.nsmallest
        return pick(count, places)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder.

    :ivar name: its last component, in UTF-8.
    :ivar is_folder: whether it is a folder (otherwise it is a file).
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
    :ivar between: is called now and then while the folder is read. What it raises ends that.
    """

    def __init__(self, fd: int, is_root: bool, records: Records) -> None:
        self.fd = fd
        self._is_root = is_root
        self._records = records
        self.between: Callable[[], None] = lambda: None

    def places(self, order: Order, after: Place | None, most: int) -> Iterator[Place]:
        """Yield the places of files and folders in *order*, those behind *after* (None: all).

        :param most: how many are kept in memory in the order of size or time. The folder is read
            again when more are taken.
        :raises StorageError: when the folder cannot be read.
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

        What no request can name is left out: links, special files, and names that are not UTF-8 or
        hold control characters. All names are read before the first is yielded.

        :param after: ``b""`` for all.
        :param descending: reverse the order. Then names behind *after* are those less than it.
        :raises StorageError: when the folder cannot be read.
        """
        runs: list[list[bytes]] = []
        run: list[bytes] = []
        for entry in self._entries():
            name = os.fsencode(entry.name)
            if _is_behind(name, after, descending) and self._is_listed(entry, name):
                run.append(name)
                if len(run) == _RUN:
                    runs.append(sorted(run, reverse=descending))
                    run = []
        runs.append(sorted(run, reverse=descending))
        return heapq.merge(*runs, reverse=descending) if len(runs) > 1 else iter(runs[0])

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with translated(), os.scandir(self.fd) as entries:
            for number, entry in enumerate(entries):
                if not number % _BETWEEN:
                    self.between()
                yield entry

    def _is_listed(self, entry: os.DirEntry[str], name: bytes) -> bool:
        if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
            return False
        return self._can_be_named(name)

    def _unsorted(self, order: Order, after: Place | None) -> Iterator[Place]:
        """Yield the places that are behind *after* in *order*, in no order."""
        for entry in self._entries():
            place = self._place(os.fsencode(entry.name), order)
            if place is not None and _is_behind(place, after, order.descending):
                yield place

    def _place(self, name: bytes, order: Order) -> Place | None:
        if not self._can_be_named(name):
            return None
        try:
            # In some versions of Python the stat method of an entry lets no other thread run.
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

    def entry(self, name: bytes) -> Entry | None:
        """Return what *name* is now, or None when it is not a file or folder any more.

        :raises StorageError: when the volume is gone.
        """
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            if version.is_folder(status):
                return Entry(name, True, version.of_stat(status))
            if version.is_file(status):
                return Entry(name, False, commits.version_at(self.fd, name, self._records, status))
        except OSError:
            with translated():
                os.fstat(self.fd)  # fails when it is the volume that is gone
        return None

    def close(self) -> None:
        """Close the descriptor."""
        with translated():
            os.close(self.fd)


def _is_behind(place: P, after: P | None, descending: bool) -> bool:
    """Tell whether *place* comes behind *after*; when that is empty, every place does."""
    if not after:
        return True
    return place < after if descending else place > after
