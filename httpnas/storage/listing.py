"""What is in a folder, in order, a page at a time.

A folder may hold millions of names. Sorting them in one call would hold Python's global lock,
and with it the reactor, for as long: so short runs are sorted, and merged while the listing is
being read.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass

from httpnas.storage import version
from httpnas.storage.beneath import PRIVATE
from httpnas.storage.records import Records
from httpnas.storage.version import Version

#: Names sorted in one call: about 5 ms.
_RUN = 16384


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

    def names(self, after: bytes = b"") -> Iterator[bytes]:
        """Yield the names of files and folders behind *after*, in the order of their bytes.

        Left out is what no request can name: links, special files, names that are not UTF-8 or
        hold control characters. All names are read before the first is yielded.

        :raises OSError: when the folder can not be read.
        """
        runs: list[list[bytes]] = []
        run: list[bytes] = []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if name > after and self._is_listed(entry, name):
                    run.append(name)
                    if len(run) == _RUN:
                        runs.append(sorted(run))
                        run = []
        runs.append(sorted(run))
        return heapq.merge(*runs) if len(runs) > 1 else iter(runs[0])

    def _is_listed(self, entry: os.DirEntry[str], name: bytes) -> bool:
        if self._is_root and name == PRIVATE:
            return False
        if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
            return False
        return _can_be_named(name)

    def look(self, name: bytes) -> Entry | None:
        """Return what *name* is by now, or None when it is no file or folder any more."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            if version.is_folder(status):
                return Entry(name, True, version.of_stat(status))
            if version.is_file(status):
                return Entry(name, False, version.committed_at(self.fd, name, self._records))
        except OSError:
            pass
        return None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def _can_be_named(name: bytes) -> bool:
    if name.isascii():
        return name.isalnum() or not any(byte < 0x20 or byte == 0x7F for byte in name)
    try:
        return not any(ord(char) < 0x20 or ord(char) == 0x7F for char in name.decode())
    except UnicodeDecodeError:
        return False
