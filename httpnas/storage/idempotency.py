"""Which appends a file has taken already: its latest idempotency keys and their outcomes.

A client whose answer was lost sends its append again, with the key of the first attempt
(draft-ietf-httpapi-idempotency-key-header). It must not be appended again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from httpnas.storage.records import LARGEST, Records
from httpnas.storage.version import Version

#: How many keys a file remembers.
REMEMBERED = 48

_KIND = "keys"
_ENTRY = struct.Struct("<16sQQ")
assert REMEMBERED * _ENTRY.size <= LARGEST


def outcome(fd: int, key: bytes, present: Version, records: Records) -> Version | None:
    """Return the version that the append with *key* has made of *fd*, or None.

    :param present: the version that the file has now. An append that made it longer was undone.
    """
    wanted = _hashed(key)
    for hashed, size, mtime_ns in _entries(fd, present, records):
        if hashed == wanted:
            return Version(size, mtime_ns, present.inode)
    return None


def remember(fd: int, key: bytes, before: Version, after: Version, records: Records) -> None:
    """Remember that the append with *key* has turned *before* into *after*.

    The key counts once the file is as long as *after*.
    """
    entries = [_ENTRY.pack(*entry) for entry in _entries(fd, before, records)]
    entries.append(_ENTRY.pack(_hashed(key), after.size, after.mtime_ns))
    records.write(fd, _KIND, b"".join(entries[-REMEMBERED:]))


def forget_undone(fd: int, present: Version, records: Records) -> None:
    """Forget the appends that had made *fd* longer than *present* and were undone.

    Once other appends have made the file as long again, they would seem to have landed.
    """
    kept = b"".join(_ENTRY.pack(*entry) for entry in _entries(fd, present, records))
    if len(kept) != len(records.read(fd, _KIND) or b""):
        records.write(fd, _KIND, kept)


def _entries(fd: int, present: Version, records: Records) -> Iterator[tuple[bytes, int, int]]:
    record = records.read(fd, _KIND) or b""
    whole = len(record) - len(record) % _ENTRY.size
    for entry in _ENTRY.iter_unpack(record[:whole]):
        if entry[1] <= present.size:
            yield entry


def _hashed(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()
