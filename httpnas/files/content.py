"""Versions of files in terms of HTTP's conditional requests, and digests of what comes in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from zlib import crc32

from httpnas.fields.conditions import Conditions
from httpnas.fields.digests import HASHES
from httpnas.files.errors import AlreadyThere, DigestMismatch, PreconditionFailed
from httpnas.storage.version import Version


def entity_tag(version: Version) -> bytes:
    """Return the strong entity tag of *version* (RFC 9110 section 8.8.3)."""
    return b'"%s"' % version.tag.encode()


def modified(version: Version) -> float:
    """Return when *version* was written, in seconds since the epoch."""
    return version.mtime_ns / 1e9


def require(conditions: Conditions, version: Version | None) -> None:
    """Refuse the change of *version*, None where there is none, unless *conditions* hold for it.

    :raises PreconditionFailed: (RFC 9110 section 13.1)
    :raises AlreadyThere: when it is there, and they allow only to create it.
    """
    etag = None if version is None else entity_tag(version)
    when = None if version is None else modified(version)
    if not conditions.for_write(etag, when):
        if conditions.create_only and version is not None:
            raise AlreadyThere("A file or folder with this name exists already.")
        raise PreconditionFailed("The file is not the version that the conditions ask for.")


class Sum:
    """Counts content while it streams, and forgets it.

    :ivar length: bytes so far, and *checksum*, their CRC-32.
    """

    length = checksum = 0

    def write(self, chunks: Sequence[bytes]) -> None:
        """Take the next bytes."""
        for chunk in chunks:
            self.length += len(chunk)
            self.checksum = crc32(chunk, self.checksum)


class DigestCheck:
    """Hashes content while it streams, and compares in the end.

    :param expected: digests by algorithm, as in :data:`httpnas.fields.digests.HASHES`.
    """

    def __init__(self, expected: Mapping[str, bytes]) -> None:
        self.expected = expected
        self._states = {name: hashlib.new(HASHES[name], usedforsecurity=False) for name in expected}

    def update(self, chunks: Sequence[bytes]) -> None:
        """Take the next bytes."""
        for state in self._states.values():
            for chunk in chunks:
                state.update(chunk)

    def verify(self) -> None:
        """Compare.

        :raises DigestMismatch: when a digest is not the expected one.
        """
        for name, state in self._states.items():
            if state.digest() != self.expected[name]:
                raise DigestMismatch(f"The {name} digest of the body is not the one announced.")
