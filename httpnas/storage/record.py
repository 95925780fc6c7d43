"""What a file knows of itself, in the form that lies on disk.

A file has one record. It says which version the file has, what is known about that version, which
appends the file has taken already, and, while an append is being committed, what is being added.

A record is only believed of the file it was made for (its inode, and its time of birth where
inodes are used again), and only as a whole (a checksum ends it): others copy, restore and write
user xattrs as well.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from httpnas.storage.version import Version

#: Bytes that a record may have; on ext4 all xattrs of a file share one block of 4 KiB.
LARGEST = 2048
#: How many appends with an idempotency key a file remembers.
KEYS = 48

_FORMAT = 2
_PENDING, _FOREIGN = 1, 2
_HEAD = struct.Struct("<BBBBQQqqqQqq")
_ADDED = struct.Struct("<QIQqQBBB")
_KEY = struct.Struct("<8sQQQ")
_CHECKSUM = struct.Struct("<I")
_UNKNOWN = -1
_ALGORITHMS = ("sha-256", "sha-512", "md5")
_SIZES = (32, 64, 16)
_NO_DIGESTS: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Key:
    """An append that the file has taken.

    :ivar hashed: eight bytes that stand for its idempotency key.
    :ivar inode: the inode that the file had then; a replace gives it another one.
    :ivar size: the length in bytes that the append has made, and *stamp*, the version.
    """

    hashed: bytes
    inode: int
    size: int
    stamp: int

    @property
    def version(self) -> Version:
        """The version that the append has made."""
        return Version(self.size, 0, self.inode, self.stamp)


@dataclass(frozen=True, slots=True)
class Pending:
    """What is being added to the file.

    :ivar added: how many bytes, behind the size of the record.
    :ivar checksum: the CRC-32 of them.
    :ivar stamp: the version that they make, and *lines*, its newlines, None for unknown.
    :ivar boot: stands for the run of the machine that adds them.
    :ivar keys: how many of the record's last keys are those of the bytes that are added.
    :ivar prefixes: CRC-32s of what is added up to each boundary of a page, see
        :mod:`httpnas.storage.commits`; none when the bytes are staged in a file.
    :ivar staged: the name of that file, empty when there is none.
    """

    added: int
    checksum: int
    stamp: int
    lines: int | None
    boot: int
    keys: int = 0
    prefixes: tuple[int, ...] = ()
    staged: bytes = b""


@dataclass(frozen=True, slots=True)
class Record:
    """What a file knows of itself.

    :ivar birth: tells the file from earlier ones of the same inode; 0 where nothing does.
    :ivar size: of the version that the record is about, like all up to *digests*.
    :ivar at_ns: when the record was written, by the clock of the file's change time.
    :ivar foreign_ctime_ns: the change time that belongs to the tag of a version that others have
        made, None for one of ours.
    """

    inode: int
    birth: int
    size: int
    mtime_ns: int
    at_ns: int
    stamp: int
    foreign_ctime_ns: int | None = None
    lines: int | None = None
    digests: Mapping[str, bytes] = field(default_factory=lambda: _NO_DIGESTS)
    keys: tuple[Key, ...] = ()
    pending: Pending | None = None

    @property
    def version(self) -> Version:
        """The version that the record is about."""
        return Version(self.size, self.mtime_ns, self.inode, self.stamp, self.foreign_ctime_ns)

    @property
    def settled_keys(self) -> tuple[Key, ...]:
        """The keys of appends that are not pending."""
        return self.keys[: len(self.keys) - self.pending.keys] if self.pending else self.keys

    def about(self, version: Version) -> Record:
        """Return a record about *version*, of which nothing else is known yet; nothing pends."""
        return replace(
            self,
            inode=version.inode,
            size=version.size,
            mtime_ns=version.mtime_ns,
            stamp=version.stamp,
            foreign_ctime_ns=version.foreign_ctime_ns,
            lines=None,
            digests=_NO_DIGESTS,
            keys=self.settled_keys,
            pending=None,
        )

    def encode(self) -> bytes:
        """Return the bytes that :func:`decode` makes this record of."""
        pending = self.pending
        is_foreign = self.foreign_ctime_ns is not None
        flags = (_PENDING if pending else 0) | (_FOREIGN if is_foreign else 0)
        parts = [
            _HEAD.pack(
                _FORMAT,
                flags,
                len(self.keys),
                len(self.digests),
                self.inode,
                self.birth,
                self.size,
                self.mtime_ns,
                self.at_ns,
                self.stamp,
                self.foreign_ctime_ns or 0,
                _UNKNOWN if self.lines is None else self.lines,
            )
        ]
        if pending is not None:
            parts.append(_encode_pending(pending))
        parts += [_KEY.pack(key.hashed, key.inode, key.size, key.stamp) for key in self.keys]
        for name, digest in self.digests.items():
            parts += [bytes([_ALGORITHMS.index(name)]), digest]
        body = b"".join(parts)
        return body + _CHECKSUM.pack(zlib.crc32(body))


def decode(encoded: bytes) -> Record | None:
    """Return the record that *encoded* is, None when it is none, or is damaged."""
    body, checksum = encoded[: -_CHECKSUM.size], encoded[-_CHECKSUM.size :]
    if len(body) < _HEAD.size or _CHECKSUM.pack(zlib.crc32(body)) != checksum:
        return None
    fields = _HEAD.unpack_from(body)
    if fields[0] != _FORMAT:
        return None
    _, flags, keys, digests, inode, birth, size, mtime_ns, at_ns, stamp, ctime, lines = fields
    rest = _Reader(body, _HEAD.size)
    return Record(
        inode,
        birth,
        size,
        mtime_ns,
        at_ns,
        stamp,
        ctime if flags & _FOREIGN else None,
        _known(lines),
        pending=_decode_pending(rest) if flags & _PENDING else None,
        keys=tuple(Key(*rest.unpack(_KEY)) for _ in range(keys)),
        digests=dict(_decode_digests(rest, digests)),
    )


class _Reader:
    """Reads one thing after the other."""

    def __init__(self, encoded: bytes, at: int) -> None:
        self._encoded = encoded
        self._at = at

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def take(self, length: int) -> bytes:
        self._at += length
        return self._encoded[self._at - length : self._at]


def _encode_pending(pending: Pending) -> bytes:
    lines = _UNKNOWN if pending.lines is None else pending.lines
    head = _ADDED.pack(
        pending.added,
        pending.checksum,
        pending.stamp,
        lines,
        pending.boot,
        pending.keys,
        len(pending.prefixes),
        len(pending.staged),
    )
    return head + struct.pack(f"<{len(pending.prefixes)}I", *pending.prefixes) + pending.staged


def _decode_pending(rest: _Reader) -> Pending:
    added, checksum, stamp, lines, boot, keys, prefixes, staged = rest.unpack(_ADDED)
    crcs = rest.unpack(struct.Struct(f"<{prefixes}I"))
    return Pending(added, checksum, stamp, _known(lines), boot, keys, crcs, rest.take(staged))


def _decode_digests(rest: _Reader, count: int) -> Iterator[tuple[str, bytes]]:
    for _ in range(count):
        (algorithm,) = rest.take(1)
        yield _ALGORITHMS[algorithm], rest.take(_SIZES[algorithm])


def _known(lines: int) -> int | None:
    return None if lines == _UNKNOWN else lines
