"""What a file knows of itself, in the form that lies on disk.

A file has one record. It says which version the file has, what is known about that version, which
appends the file has taken already, and, while an append is being committed, what is being added.

A record is only believed of the file it was made for (its inode, and its time of birth where
inodes are used again), and only as a whole (a checksum ends it): others copy, restore and write
user xattrs as well.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeGuard

from httpnas.storage.version import Version

#: Bytes that a record may have; on ext4 all xattrs of a file share one block of 4 KiB.
LARGEST = 3072
#: How many appends with an idempotency key a file remembers.
KEYS = 48
#: Bytes of a page of memory: a write(2) that is killed ends where one does.
PAGE = 4096

_FORMAT = 2
_PENDING, _FOREIGN = 1, 2
_HEAD = struct.Struct("<BBBBQQqqqqqq")
_ADDED = struct.Struct("<QIqqQHBBB")
_KEY = struct.Struct("<8sQQqQI??")
_CHECKSUM = struct.Struct("<I")
_UNKNOWN = -1
_HALF = 1 << 63
#: Nanoseconds by which a change time may differ from the time at which the change was asked for: a
#: step of the kernel's clock for it, and a little more.
_TOLERANCE = 6_000_000
_SECOND = 1_000_000_000
#: The time of a record that says nothing of the change time.
ANY_TIME = 0
_ALGORITHMS = ("sha-256", "sha-512", "md5")
_SIZES = (32, 64, 16)
_NO_DIGESTS: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Key:
    """An append that the file has taken.

    :ivar hashed: eight bytes that stand for its idempotency key.
    :ivar inode: the inode that the file had then.
    :ivar size: the length in bytes that the append has made, and *stamp*, the version.
    :ivar length: how many bytes were appended, and *checksum*, their CRC-32.
    :ivar replaced: whether the file that has taken it was replaced since.
    :ivar doubtful: whether others have changed the file since, so that it may not be there. It may
        not be on stable storage either, if the append failed.
    """

    hashed: bytes
    inode: int
    size: int
    stamp: int
    length: int = 0
    checksum: int = 0
    replaced: bool = False
    doubtful: bool = False

    def counts_at(self, size: int) -> bool:
        """Tell whether the append counts in a file of *size* bytes.

        What is said to have made it longer was cut off by others.
        """
        return self.replaced or self.size <= size

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
    :ivar block: bytes of a block of the file: an interrupted write ends where one does.
    :ivar blocks: CRC-32s of what is added to each block of the file, see
        :mod:`httpnas.storage.commits`; none when the bytes are staged in a file.
    :ivar staged: the path of that file. It stands for what is added, and tells which daemon adds
        it, also when there is no such file.
    """

    added: int
    checksum: int
    stamp: int
    lines: int | None
    boot: int
    block: int = PAGE
    keys: int = 0
    blocks: tuple[int, ...] = ()
    staged: bytes = b""


@dataclass(frozen=True, slots=True)
class Record:
    """What a file knows of itself.

    :ivar birth: tells the file from earlier ones of the same inode; 0 where nothing does.
    :ivar size: of the version that the record is about, like all up to *digests*.
    :ivar at_ns: when the record was written, by the clock of the file's change time, or
        :data:`ANY_TIME`.
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
    def settled(self) -> Record:
        """The record as it was before something pended."""
        return replace(self, keys=self.settled_keys, pending=None) if self.pending else self

    @property
    def settled_keys(self) -> tuple[Key, ...]:
        """The keys of appends that are not pending."""
        return self.keys[: len(self.keys) - self.pending.keys] if self.pending else self.keys

    def completed(self, by: int) -> Record:
        """Return the record with the keys of what pended, which begins *by* bytes further on."""
        settled = self.settled_keys
        pended = self.keys[len(settled) :]
        moved = (replace(key, size=key.size + by) for key in pended)
        return replace(self, keys=(*settled, *moved), pending=None)

    @property
    def inherited_keys(self) -> tuple[Key, ...]:
        """What the keys are to a file that replaces this one: they belong to the name."""
        return tuple(replace(key, replaced=True) for key in self.settled_keys)

    def about(self, version: Version) -> Record:
        """Return a record about *version*, of which nothing else is known yet; nothing pends.

        The keys of what others have cut off go: it is not there when the file has grown again.
        """
        return replace(
            self,
            inode=version.inode,
            size=version.size,
            mtime_ns=version.mtime_ns,
            stamp=version.stamp,
            foreign_ctime_ns=version.foreign_ctime_ns,
            lines=None,
            digests=_NO_DIGESTS,
            keys=tuple(
                replace(key, doubtful=True)
                for key in self.settled_keys
                if key.counts_at(version.size)
            ),
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
                _fitting(self.mtime_ns),
                _fitting(self.at_ns),
                _fitting(self.stamp),
                _fitting(self.foreign_ctime_ns or 0),
                _UNKNOWN if self.lines is None else self.lines,
            )
        ]
        if pending is not None:
            parts.append(_encode_pending(pending))
        parts += [_KEY.pack(*astuple(key)) for key in self.keys]
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


def fits(record: Record | None, status: os.stat_result) -> TypeGuard[Record]:
    """Tell whether *record* is about the version that *status* shows.

    The time of change decides, which is set by every change and by no program: touch(1) can set
    back the time of modification. On a network, where hosts may see different ones, it is not
    asked. Where both times are whole seconds, so is what can be told.
    """
    if not nearly_fits(record, status):
        return False
    if record.at_ns == ANY_TIME:
        return True
    coarse = status.st_ctime_ns % _SECOND == 0 and status.st_mtime_ns % _SECOND == 0
    later = status.st_ctime_ns - record.at_ns
    return -_TOLERANCE - (_SECOND if coarse else 0) <= later <= _TOLERANCE


def nearly_fits(record: Record | None, status: os.stat_result) -> TypeGuard[Record]:
    """Tell whether *record* is about the version of *status*, but for the time of change."""
    if record is None:
        return False
    return (record.size, record.mtime_ns) == (status.st_size, status.st_mtime_ns)


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
        pending.block,
        pending.keys,
        len(pending.blocks),
        len(pending.staged),
    )
    return head + struct.pack(f"<{len(pending.blocks)}I", *pending.blocks) + pending.staged


def _decode_pending(rest: _Reader) -> Pending:
    added, checksum, stamp, lines, boot, block, keys, count, staged = rest.unpack(_ADDED)
    crcs = rest.unpack(struct.Struct(f"<{count}I"))
    return Pending(
        added, checksum, stamp, _known(lines), boot, block, keys, crcs, rest.take(staged)
    )


def _decode_digests(rest: _Reader, count: int) -> Iterator[tuple[str, bytes]]:
    for _ in range(count):
        (algorithm,) = rest.take(1)
        yield _ALGORITHMS[algorithm], rest.take(_SIZES[algorithm])


def _fitting(time_ns: int) -> int:
    """Return *time_ns* in 64 bits. What needs more (ext4 knows the year 2400) fits nothing then."""
    return (time_ns + _HALF) % (2 * _HALF) - _HALF


def _known(lines: int) -> int | None:
    return None if lines == _UNKNOWN else lines
