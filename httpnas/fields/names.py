"""From a request target to the name of a stored file, and back into a link.

A name is read off the raw target, before any framework decodes it, and decoded exactly once:
whatever passes here is what the storage layer sees.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

MAX_COMPONENT = 255
"""Longest component of a name, in bytes after decoding (``NAME_MAX`` of Linux)."""

MAX_NAME = 4096
"""Longest name, in bytes after decoding (``PATH_MAX`` of Linux)."""

# Every byte escaped, and a slash on either side: nothing longer can be worth decoding.
_MAX_RAW = 3 * MAX_NAME + 2

#: Components that change nothing.
_NOTHING = (b"", b".")

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?]+", re.IGNORECASE)


class BadName(ValueError):
    """The target does not spell a name; the message tells the client why."""


class NameTooLong(ValueError):
    """The target spells a name of more than :data:`MAX_NAME` bytes."""


def decode_name(raw: bytes) -> bytes:
    """Decode the path behind a door to the name it spells.

    An escaped slash separates components like a literal one, because proxies rewrite one into
    the other. A component ``.`` is dropped, as clients do before they send it (RFC 3986 section
    5.2.4), but not those that follow a list of their own, such as the ``./x.deb`` of apt.

    :param raw: the path as sent, still percent-encoded (RFC 3986 section 2.1).
    :return: a relative path in UTF-8 without leading, trailing or doubled slashes; ``b""`` is
        the root.
    :raises BadName: for a bad escape, invalid UTF-8, a control character, a ``..`` component or a
        component of more than :data:`MAX_COMPONENT` bytes.
    :raises NameTooLong: for more than :data:`MAX_NAME` bytes.
    """
    if len(raw) > _MAX_RAW:
        raise _too_long()
    if _BAD_ESCAPE.search(raw):
        raise BadName("The name has a % that is not followed by two hexadecimal digits.")
    return check_name(unquote_to_bytes(raw))


def check_name(spelled: bytes) -> bytes:
    """Return the name that *spelled*, which is not percent-encoded, means.

    :raises BadName: as :func:`decode_name`, but for escapes, which mean nothing here.
    :raises NameTooLong: for more than :data:`MAX_NAME` bytes.
    """
    if _CONTROL.search(spelled):
        raise BadName("The name has a control character in it.")
    try:
        spelled.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise BadName("The name is not valid UTF-8.") from None
    components = [each for each in spelled.split(b"/") if each not in _NOTHING]
    name = b"/".join(components)
    if len(name) > MAX_NAME:
        raise _too_long()
    for component in components:
        _check_component(component)
    return name


def split_verb(raw: bytes, verbs: frozenset[bytes]) -> tuple[bytes, bytes | None]:
    """Split a verb off the end of a path.

    A verb is spelled without escapes behind a literal slash, and something comes before it:
    ``d%2Fwc`` and ``wc`` are names of files.

    :param raw: the path as sent, still percent-encoded.
    :param verbs: the verbs known to the door.
    :return: the path without the verb, and the verb; or all of ``raw``, and None.
    """
    path, _, last = raw.rpartition(b"/")
    if last in verbs and _names_something(path):
        return path, last
    return raw, None


def is_of_folder(raw: bytes) -> bool:
    """Tell whether a path can be that of a folder only: it ends in a slash, or in ``/.``.

    :param raw: the path as sent, still percent-encoded.
    """
    return unquote_to_bytes(raw).rpartition(b"/")[2] in _NOTHING


def quote_component(component: bytes) -> str:
    """Percent-encode one component of a name for use in a relative reference.

    All but the unreserved characters is encoded (RFC 3986 section 2.3); a colon too, as
    ``a:b`` would be a scheme in a relative reference (section 4.2).

    :param component: a component as :func:`decode_name` gives it.
    """
    return quote(component, safe="")


def path_of(target: bytes) -> bytes:
    """Take the raw path, without the query, out of a request target (RFC 9112 section 3.2).

    :param target: in origin-form, absolute-form or asterisk-form.
    :return: the path, still percent-encoded; it begins with a slash, or else the target belongs
        to no door (``*``, or a form that only proxies are sent).
    """
    path = target.partition(b"?")[0]
    absolute = _ABSOLUTE_FORM.match(path)
    if absolute is None:
        return path
    return path[absolute.end() :] or b"/"


def _check_component(component: bytes) -> None:
    if component == b"..":
        raise BadName("A name must not have '..' as one of its components.")
    if len(component) > MAX_COMPONENT:
        raise BadName(f"A component of the name is longer than {MAX_COMPONENT} bytes.")


def _names_something(path: bytes) -> bool:
    return any(component not in _NOTHING for component in unquote_to_bytes(path).split(b"/"))


def _too_long() -> NameTooLong:
    return NameTooLong(f"The name is longer than {MAX_NAME} bytes.")
