"""Facts about a file, kept so that nobody has to read the whole file for them again.

Facts are stamped with the version that they are about. A change made behind the daemon's back makes
another version, and then they are void. They are a convenience: losing them costs only time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stringzilla import bytesum, translate

from httpnas.storage.errors import StorageFull, translated
from httpnas.storage.records import LARGEST, Records
from httpnas.storage.version import Version

_KIND = "facts"
_ONE_FOR_A_NEWLINE = bytes(byte == 0x0A for byte in range(256))


@dataclass(frozen=True)
class Facts:
    """Facts about one version of a file.

    :ivar lines: how many newlines it has, None when nobody has counted.
    :ivar digests: by algorithm, those that are known.
    """

    lines: int | None = None
    digests: Mapping[str, bytes] = field(default_factory=dict)

    def joined(self, other: Facts) -> Facts:
        """Return these facts and those of *other* about the same version."""
        lines = self.lines if other.lines is None else other.lines
        return Facts(lines, {**self.digests, **other.digests})


def newlines(chunks: Iterable[bytes | bytearray | memoryview]) -> int:
    """Return the number of newlines in *chunks*.

    A table turns each newline into 1 and all else into 0, and the sum is the count. This takes the
    same time whatever the lines are like (some 25 GB/s); searching for newlines is slow when lines
    are short.
    """
    return sum(bytesum(translate(chunk, _ONE_FOR_A_NEWLINE)) for chunk in chunks if chunk)


def recall(fd: int, version: Version, records: Records) -> Facts:
    """Return what is known of *version* of the open file *fd*."""
    record = records.read(fd, _KIND)
    try:
        known = json.loads(record or b"{}")
        if known.get("version") != version.tag:
            return Facts()
        digests = {name: bytes.fromhex(value) for name, value in known["digests"].items()}
        lines = known["lines"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return Facts()  # others may write user xattrs too
    return Facts(lines if isinstance(lines, int) else None, digests)


def remember(fd: int, version: Version, facts: Facts, records: Records) -> None:
    """Keep *facts* about *version* of the open file *fd*, in place of all that were kept before.

    They are dropped when the file system has no space for them.

    :raises StorageError: when the storage fails.
    """
    digests = {name: value.hex() for name, value in facts.digests.items()}
    known = {"version": version.tag, "lines": facts.lines, "digests": digests}
    record = json.dumps(known, separators=(",", ":")).encode()
    if len(record) <= LARGEST:
        with contextlib.suppress(StorageFull), translated():
            records.write(fd, _KIND, record)
