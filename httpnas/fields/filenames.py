"""Names of files in the parts of a form, decoded as the clients that write them mean them.

Browsers and curl send a name as it is, in UTF-8 (the HTML standard). Others encode it: by RFC 8187
(``filename*``, which RFC 7578 section 4.2 forbids), RFC 2047 (.NET), or percent-encoding (RFC 7578
section 2; aiohttp).
"""

from __future__ import annotations

import binascii
import re
from urllib.parse import quote, unquote, unquote_to_bytes

_CHARSETS = ("utf-8", "us-ascii", "iso-8859-1")
_EXTENDED = re.compile(r"([A-Za-z0-9_-]+)'[^']*'((?:[A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-Fa-f]{2})*)")
_WORD = re.compile(r"=\?([^?*\s]+)(?:\*[^?\s]*)?\?([BbQq])\?([^?\s]*)\?=[ \t]*")
_WORDS = re.compile(rf"(?:{_WORD.pattern})+")
#: How the User-Agent of clients begins that never percent-encode a name.
_SEND_AS_IT_IS = (b"Mozilla/", b"curl/")


class BadFileName(ValueError):
    """It is not clear what a name means; the message tells the client why."""


def decode_filename(plain: str | None, extended: str | None, agent: bytes = b"") -> str | None:
    """Return the name of a file, None when there is none.

    :param plain: the parameter ``filename``, without quotes and escapes.
    :param extended: the parameter ``filename*``, which comes first (RFC 6266 section 4.3).
    :param agent: the value of User-Agent: whether a percent sign means itself depends on who sent
        it.
    :raises BadFileName: when it is malformed, or in a charset that is not known.
    """
    if extended is not None:
        match = _EXTENDED.fullmatch(extended)
        if match is None:
            raise BadFileName("filename* is not written as UTF-8''NAME (RFC 8187).")
        return _text(unquote_to_bytes(match[2]), match[1])
    if plain is None:
        return None
    if _WORDS.fullmatch(plain):
        return "".join(_of_word(*word.groups()) for word in _WORD.finditer(plain))
    return unquote(plain, errors="strict") if _is_percent_encoded(plain, agent) else plain


def _is_percent_encoded(name: str, agent: bytes) -> bool:
    """Tell whether all of *name* is percent-encoded, and by who does that.

    aiohttp does it to every name. Others may follow RFC 7578 if that made a name ASCII.
    """
    try:
        decoded = unquote(name, errors="strict")
    except UnicodeDecodeError:
        return False
    if "%" not in name or quote(decoded, safe="") != name or agent.startswith(_SEND_AS_IT_IS):
        return False
    return b"aiohttp/" in agent or not decoded.isascii()


def _of_word(charset: str, encoding: str, text: str) -> str:
    """Return what an encoded word stands for (RFC 2047 section 4)."""
    try:
        if encoding in "Bb":
            return _text(binascii.a2b_base64(text, strict_mode=True), charset)
        return _text(binascii.a2b_qp(text, header=True), charset)
    except (binascii.Error, ValueError) as error:
        raise BadFileName("The name of a file is a broken encoded word (RFC 2047).") from error


def _text(encoded: bytes, charset: str) -> str:
    if charset.lower() not in _CHARSETS:
        raise BadFileName(f"The name of a file is in {charset}; send it in UTF-8.")
    try:
        return encoded.decode(charset)
    except UnicodeDecodeError as error:
        raise BadFileName(f"The name of a file is not valid {charset}.") from error
