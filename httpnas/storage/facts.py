"""What a file knows of itself, so that nobody has to read it for that again.

Facts are stamped with the version they are about. A change made behind the daemon's back makes
another version, and the facts are void. They are a convenience: losing them costs time only.
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
    :ivar digests: by algorithm, those that somebody has asked for.
    """

    lines: int | None = None
    digests: Mapping[str, bytes] = field(default_factory=dict)

    def joined(self, other: Facts) -> Facts:
        """Return these facts and those of *other* about the same version."""
        lines = self.lines if other.lines is None else other.lines
        return Facts(lines, {**self.digests, **other.digests})


def newlines(chunks: Iterable[bytes]) -> int:
    """Return the number of newlines in *chunks*.

    A table turns newlines into 1 and all else into 0, and the sum of that is the count: some 25
    GB/s whatever the lines are like, where counting them one by one is slow for short ones.
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
    """Keep *facts* about *version* of the open file *fd*, in place of all there were.

    Where there is no room for them they are not kept.

    :raises StorageError: when the storage fails.
    """
    digests = {name: value.hex() for name, value in facts.digests.items()}
    known = {"version": version.tag, "lines": facts.lines, "digests": digests}
    record = json.dumps(known, separators=(",", ":")).encode()
    if len(record) <= LARGEST:
        with contextlib.suppress(StorageFull), translated():
            records.write(fd, _KIND, record)
