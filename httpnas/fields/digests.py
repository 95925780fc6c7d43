"""Digests in header fields: RFC 9530, and Content-MD5 of RFC 1864."""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import Error, a2b_base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

HASHES: Mapping[str, str] = MappingProxyType(
    {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}
)
"""The digest algorithms understood, and their names in :mod:`hashlib`."""

# MD5 is good for the field that is named after it, and too weak for any other.
_MODERN = ("sha-256", "sha-512")
_SIZES = {"sha-256": 32, "sha-512": 64, "md5": 16}

# Dictionaries of items, RFC 9651 section 4.2.2; no two neighbours in these patterns begin with
# or end on the same characters, so that they cannot backtrack far.
_KEY = rb"[a-z*][a-z0-9_.*-]*"
_ITEM = (
    rb"(?::[A-Za-z0-9+/]*={0,2}:"
    rb"|@?-?[0-9]{1,15}(?:\.[0-9]{1,3})?"
    rb'|%?"(?:[ !#-\[\]-~]|\\["\\])*"'
    rb"|[A-Za-z*][A-Za-z0-9:/!#$%&'*+.^_`|~-]*"
    rb"|\?[01])"
)
_PARAMETERS = rb"(?:; *%b(?:=%b)?)*" % (_KEY, _ITEM)
_MEMBER = re.compile(
    rb"(?P<key>%b)(?:=(?P<item>%b))?%b[ \t]*(?P<next>,[ \t]*|\Z)" % (_KEY, _ITEM, _PARAMETERS)
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


class BadDigestField(ValueError):
    """A digest field cannot be understood; the message tells the client why."""


def expected_digests(get: Callable[[bytes], Sequence[bytes]]) -> dict[str, bytes]:
    """Read the digests a client announces for the content it sends.

    :param get: gives the values of all field lines of a name, none if there are none.
    :return: keys of :data:`HASHES` and the digests; digests of other algorithms are left out.
    :raises BadDigestField: if a field is malformed, a digest has the wrong length, or two
        digests of one algorithm differ.
    """
    digests: dict[str, bytes] = {}
    for algorithm, digest in _announced(get):
        if digests.setdefault(algorithm, digest) != digest:
            raise BadDigestField(f"The request has two different {algorithm} digests.")
    return digests


def wanted_digest(field: bytes | None) -> str | None:
    """Choose the digest to answer a Want-Repr-Digest with (RFC 9530 section 4).

    :param field: the value of the field, None if there is none.
    :return: a key of :data:`HASHES`, or None: no digest is wanted, or none that is known, or
        the field is malformed.
    """
    try:
        wishes = dict(_members(field or b""))
        preferences = {name: _preference(wishes.get(name.encode(), b"0")) for name in _MODERN}
    except ValueError:
        return None
    best = max(_MODERN, key=preferences.__getitem__)
    return best if preferences[best] else None


def format_digest(algorithm: str, value: bytes) -> bytes:
    """Write a digest as the member of a Repr-Digest or Content-Digest.

    :param algorithm: a key of :data:`HASHES`.
    :param value: the digest itself.
    """
    return b"%b=:%b:" % (algorithm.encode("ascii"), b64encode(value))


def _announced(get: Callable[[bytes], Sequence[bytes]]) -> Iterator[tuple[str, bytes]]:
    for name in (b"Repr-Digest", b"Content-Digest"):
        for key, item in _members(b", ".join(get(name))):
            algorithm = key.decode("ascii")
            if algorithm in _MODERN:
                yield algorithm, _decode(algorithm, _byte_sequence(algorithm, item))
    for line in get(b"Content-MD5"):
        yield "md5", _decode("md5", line.strip(b" \t"))


def _members(field: bytes) -> Iterator[tuple[bytes, bytes]]:
    text = field.strip(b" \t")
    position, more = 0, bool(text)
    while more:
        member = _MEMBER.match(text, position)
        if member is None:
            raise BadDigestField("A digest field is not a dictionary such as sha-256=:BASE64:.")
        # RFC 9651 section 4.2.2: a key alone is a Boolean true.
        yield member["key"], member["item"] or b"?1"
        position, more = member.end(), member["next"] != b""


def _byte_sequence(algorithm: str, item: bytes) -> bytes:
    if not item.startswith(b":"):
        raise BadDigestField(f"The {algorithm} digest is not written as :BASE64:.")
    return item[1:-1]


def _decode(algorithm: str, text: bytes) -> bytes:
    size = _SIZES[algorithm]
    try:
        digest = a2b_base64(_padded(text))
    except Error:
        digest = b""
    if len(digest) != size or not _BASE64.fullmatch(text):
        raise BadDigestField(f"The {algorithm} digest is not {size} bytes in base64.")
    return digest


def _padded(text: bytes) -> bytes:
    # RFC 9651 section 4.2.7: absent padding is forgiven.
    bare = text.rstrip(b"=")
    return bare + b"=" * (-len(bare) % 4)


def _preference(item: bytes) -> int:
    # An item has 15 digits at most; one that is no integer is a ValueError of its own.
    preference = int(item)
    if not 0 <= preference <= 10:
        raise ValueError("not a preference from 0 to 10")
    return preference
