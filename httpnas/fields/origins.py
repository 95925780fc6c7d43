"""Origins of pages, and the hosts that requests are for (RFC 6454, RFC 9110 section 7.2)."""

from __future__ import annotations

import re

_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}
_HOST = rb"[^:/?#@\s\[\]]+|\[[0-9A-Fa-f:.]+\]"
_ORIGIN = re.compile(rb"(?P<scheme>https?)://(?P<host>%b)(?::(?P<port>[0-9]+))?" % _HOST, re.I)
_AUTHORITY = re.compile(rb"(?P<host>%b)(?::(?P<port>[0-9]*))?" % _HOST)


def origin_of(value: bytes) -> bytes | None:
    """Return an origin as browsers spell it: in small letters, without the usual port.

    :param value: such as ``https://Example.org:443``.
    :return: None if it is none of ``http`` or ``https``, such as ``null``.
    """
    match = _ORIGIN.fullmatch(value)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    return scheme + b"://" + _authority(match["host"], match["port"], _DEFAULT_PORTS[scheme])


def host_of(field: bytes) -> bytes | None:
    """Return the name of the host in a Host field, in small letters and without the port.

    :return: None if there is none.
    """
    match = _AUTHORITY.fullmatch(field)
    return None if match is None else match["host"].lower()


def is_at(origin: bytes, field: bytes) -> bool:
    """Tell whether the pages of *origin* come from the server that a Host field names.

    A server behind a proxy does not know which scheme its clients use, so that of the origin
    counts: it says which port is the usual one.
    """
    canonical, match = origin_of(origin), _AUTHORITY.fullmatch(field)
    if canonical is None or match is None:
        return False
    scheme, _, authority = canonical.partition(b"://")
    return authority == _authority(match["host"], match["port"], _DEFAULT_PORTS[scheme])


def _authority(host: bytes, port: bytes | None, default: bytes) -> bytes:
    number = (port or default).lstrip(b"0") or b"0"
    return host.lower() + (b"" if number == default else b":" + number)
