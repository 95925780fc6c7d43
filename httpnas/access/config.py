"""The file of ``--auth``, in TOML; docs/security.md describes it.

Nothing in it is guessed: what is unknown, missing or of another type is an error, which names the
file and the line. TOML keeps no lines, so the line is that where the key stands in the text.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

from httpnas.access.certificates import NAMES, ClientCertificates
from httpnas.access.jwts import ALGORITHMS, Issuer, Source, read_keys
from httpnas.access.links import LinkKey, secret_of
from httpnas.access.passwords import BadPasswords, read_passwords
from httpnas.access.policy import Policy, Stamp, stamp_of
from httpnas.access.rules import ANONYMOUS, AUTHENTICATED, OF_THE_DAEMON, Right, Rule, Rules
from httpnas.access.tokens import Token, Tokens
from httpnas.fields.names import BadName, NameTooLong, check_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The most bytes of a file that is read.
_MOST = 4 << 20
#: The most rules: each request may have to look at all of them.
_MOST_RULES = 1000
_AT = re.compile(r"\(at line (\d+), column \d+\)")
#: What a name of the file's own may be. Those that come from elsewhere have a ``:`` or a ``/``.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
#: Who a rule or a group may name: a principal, or a group behind an ``@``.
_WHO = re.compile(r"@?[^\s@\x00-\x1f\x7f][^\s\x00-\x1f\x7f]{0,254}\Z")
_REALM = re.compile(r"[ !#-\[\]-~]{1,64}\Z")
_KIND = re.compile(r"(?:kubernetes|oidc)\Z")
_PREFIX = re.compile(r"(?:[A-Za-z0-9-]{1,64}/)?\Z")
#: Whoever could change keys on their way could sign tokens.
_SAFE_URL = re.compile(r"(?:https://|http://(?:localhost|127\.0\.0\.1|\[::1\])[:/])[!-~]+\Z")
_KEY_ID = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration cannot be used; the text names file and line.

    :ivar stamps: as of :class:`Policy`, of what was read before.
    """

    stamps: Mapping[str, Stamp | None] = MappingProxyType({})


class _Table:
    """A table of the file, of which each key is taken once.

    :param source: path and text of the file.
    :param header: as it stands in the text, such as ``[[rule]]``; empty for the keys before all.
    :param number: which of the tables with this header it is, from 0.
    """

    def __init__(
        self, source: tuple[str, str], members: Mapping[str, Any], header: str = "", number: int = 0
    ) -> None:
        self._source = source
        self._members = dict(members)
        self._header = header
        self._number = number

    def line(self, key: str = "") -> int:
        """Return where *key* stands, or where the table begins."""
        is_key = re.compile(rf"""["']?{re.escape(key)}["']?\s*[=.]""")
        header, seen, found = "", -1 if self._header else 0, 1
        for number, text in enumerate(self._source[1].splitlines(), 1):
            stripped = text.strip()
            if stripped.startswith("["):
                header = re.sub(r"\s", "", stripped.partition("#")[0])
                seen += header == self._header
                if header == self._header and seen == self._number:
                    found = number
                elif not self._header and re.match(rf"\[+{re.escape(key)}[\].]", header):
                    return number
            elif header == self._header and seen == self._number and is_key.match(stripped):
                return number
        return found

    def error(self, why: str, key: str = "") -> ConfigError:
        """Return the error that *why* is wrong with *key*, or with the table."""
        what = f"{key}: " if key else ""
        return ConfigError(f"{self._source[0]}:{self.line(key)}: {what}{why}")

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return the value of *key*, which must be there if there is no *default*."""
        if key not in self._members:
            if default is None:
                raise self.error(f"{self._header or 'the file'} needs {key!r}")
            return default
        value = self._members.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise self.error(f"this must be {_CALLED.get(kind, kind.__name__)}", key)
        return value

    def text(self, key: str, fits: re.Pattern[str], what: str, default: str | None = None) -> str:
        """Return the value of *key*, which must be *what*, as *fits* has it."""
        value = self.take(key, str, default)
        if not fits.match(value):
            raise self.error(f"{value!r} is not {what}", key)
        return value

    def texts(self, key: str, default: list[object] | None = None) -> list[str]:
        """Return the value of *key*, a list of strings."""
        values: list[Any] = self.take(key, list, default)
        if not all(isinstance(value, str) for value in values):
            raise self.error("this must be a list of strings", key)
        return values

    def left(self) -> list[str]:
        """Return the keys that have not been taken."""
        return list(self._members)

    def tables(self, key: str) -> list[_Table]:
        """Return the tables of the array *key*, none if there is no such."""
        values: list[Any] = self.take(key, list, [])
        if not all(isinstance(value, dict) for value in values):
            raise self.error(f"this must be written as [[{key}]]", key)
        header = f"[[{key}]]"
        return [_Table(self._source, each, header, n) for n, each in enumerate(values)]

    def table(self, key: str) -> _Table:
        """Return the table *key*, an empty one if there is no such."""
        members: dict[str, Any] = self.take(key, dict, {})
        return _Table(self._source, members, f"[{key}]")

    def end(self) -> None:
        """Refuse keys that nobody has taken."""
        for key in self._members:
            raise self.error("there is no such key", key)


_CALLED: dict[type, str] = {
    str: "a string",
    list: "a list",
    dict: "a table",
    int: "a number",
    datetime: "a time such as 2027-01-31T00:00:00Z",
}


def _read(path: str, stamps: dict[str, Stamp | None]) -> str:
    """Return the text of the file *path*, and note its stamp in *stamps*.

    :raises ConfigError: when it cannot be read.
    """
    stamps[path] = None
    try:
        with open(path, "rb") as file:
            stamps[path] = stamp_of(os.fstat(file.fileno()))
            content = file.read(_MOST + 1)
        if len(content) > _MOST:
            raise ConfigError(f"{path}: it has more than {_MOST} bytes")
        return content.decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8") from None
    except ValueError:
        raise ConfigError(f"{path!r}: no file can be called so") from None


def load(path: str) -> Policy:
    """Return what the file *path* configures. It asks the disk, so it is for a thread.

    :raises ConfigError: when it, or a file that it names, cannot be used.
    """
    stamps: dict[str, Stamp | None] = {}
    try:
        return _load(path, stamps)
    except ConfigError as error:
        error.stamps = stamps
        raise


def _load(path: str, stamps: dict[str, Stamp | None]) -> Policy:
    text = _read(path, stamps)
    try:
        members = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        why = str(error)
        at = _AT.search(why)
        line = int(at[1]) if at else text.count("\n") + 1
        raise ConfigError(f"{path}:{line}: {_AT.sub('', why).strip()}") from None
    except RecursionError:
        raise ConfigError(f"{path}:1: it is nested too deeply") from None
    file = _Table((path, text), members)
    realm = file.text("realm", _REALM, "1 to 64 characters of ASCII without quotes", "httpnas")
    hashes = _passwords(file, path, stamps)
    tokens = [_token(table) for table in file.tables("token")]
    _refuse_same(file, hashes, tokens)
    keys = [_link_key(table) for table in file.tables("link-key")]
    longest = file.take("longest-link", int, 7 * 86400)
    if not 0 < longest <= 366 * 86400:
        raise file.error("this must be a number of seconds, up to those of a year", "longest-link")
    if len({key.id for key in keys}) < len(keys):
        raise file.error("two keys have the same id", "link-key")
    issuers = [_issuer(table, path, stamps) for table in file.tables("issuer")]
    for what in ("issuer", "prefix"):
        if len({getattr(issuer, what) for issuer in issuers}) < len(issuers):
            raise file.error(f"two issuers have the same {what}", "issuer")
    certificates = None
    if "certificates" in file.left():
        certificates = _certificates(file.table("certificates"), {each.prefix for each in issuers})
    groups, named = _groups(file.table("groups"))
    tables = file.tables("rule")
    if len(tables) > _MOST_RULES:
        raise tables[_MOST_RULES].error(f"there are more than {_MOST_RULES} rules")
    rules = Rules([_rule(table, named) for table in tables])
    file.end()
    return Policy(
        realm,
        rules,
        groups,
        hashes,
        Tokens(tokens),
        {each.issuer: each for each in issuers},
        certificates,
        tuple(keys),
        longest,
        stamps,
    )


def _passwords(file: _Table, config: str, stamps: dict[str, Stamp | None]) -> dict[str, str]:
    name = file.take("passwords", str, "")
    if not name:
        return {}
    path = os.path.join(os.path.dirname(config), name)
    try:
        hashes = read_passwords(_read(path, stamps))
    except BadPasswords as error:
        raise ConfigError(f"{path}:{error.line}: {error}") from None
    if ANONYMOUS in hashes:
        raise ConfigError(f"{path}: nobody may be called {ANONYMOUS}")
    return hashes


def _token(table: _Table) -> Token:
    name = table.text("name", _NAME, "a name of letters, digits and . _ -")
    digest = table.text("sha256", _DIGEST, "a SHA-256 in 64 hexadecimal digits (lower case)")
    expires = table.take("expires", datetime)
    if expires.tzinfo is None:
        raise table.error("a time needs its zone, such as 2027-01-31T00:00:00Z", "expires")
    if name == ANONYMOUS:
        raise table.error(f"no token may be called {ANONYMOUS}", "name")
    table.end()
    return Token(name, bytes.fromhex(digest), expires.timestamp())


def _issuer(table: _Table, config: str, stamps: dict[str, Stamp | None]) -> Issuer:
    kind = table.text("kind", _KIND, "kubernetes or oidc")
    is_kubernetes = kind == "kubernetes"
    name = table.text("name", _KEY_ID, "a name of letters, digits and -")
    issuer, audience = table.take("issuer", str), table.take("audience", str, "httpnas")
    if not issuer or not audience:
        raise table.error("issuer and audience must not be empty", "issuer")
    known = [each for every in ALGORITHMS.values() for each in every]
    algorithms = table.texts("algorithms", ["RS256", "ES256"])
    if not algorithms or not set(algorithms) <= set(known):
        raise table.error(f"these are possible: {', '.join(known)}", "algorithms")
    prefix = table.text(
        "prefix", _PREFIX, "a word and a slash", "" if is_kubernetes else f"{name}/"
    )
    if not prefix and not is_kubernetes:
        raise table.error("without one, its principals could be taken for users", "prefix")
    principal = "sub" if is_kubernetes else table.take("principal", str, "sub")
    groups = "" if is_kubernetes else table.take("groups", str, "groups")
    keys, source = None, None
    place = table.take("keys", str)
    if re.match("https?:", place):
        if not _SAFE_URL.match(place):
            raise table.error("keys need https, or come from this machine", "keys")
        beside = [table.take(each, str, "") for each in ("ca", "token")]
        folder = os.path.dirname(config)
        source = Source(place, *(each and os.path.join(folder, each) for each in beside))
    else:
        path = os.path.join(os.path.dirname(config), place)
        try:
            keys = read_keys(_read(path, stamps))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
    table.end()
    return Issuer(
        issuer,
        audience,
        tuple(algorithms),
        is_kubernetes,
        principal,
        groups,
        prefix,
        keys,
        source,
    )


def _certificates(table: _Table, taken: set[str]) -> ClientCertificates:
    principal = table.take("principal", str, "CN")
    if principal not in NAMES:
        raise table.error(f"{principal!r} is none of {', '.join(NAMES)}", "principal")
    prefix = table.text("prefix", _PREFIX, "a word and a slash", "cert/")
    if not prefix:
        raise table.error("without one, its principals could be taken for users", "prefix")
    if prefix in taken:
        raise table.error("an issuer has the same prefix", "prefix")
    table.end()
    return ClientCertificates(principal, prefix)


def _link_key(table: _Table) -> LinkKey:
    identity = table.text("id", _KEY_ID, "an id of letters, digits and -")
    secret = secret_of(table.take("secret", str))
    if secret is None:
        raise table.error("this is not 32 bytes or more in base64", "secret")
    table.end()
    return LinkKey(identity, secret)


def _refuse_same(file: _Table, hashes: Mapping[str, str], tokens: list[Token]) -> None:
    """Refuse a token that has the name of a user. Several tokens may have one name, to follow.

    :raises ConfigError: when one has.
    """
    for token in tokens:
        if token.name in hashes:
            raise file.error(
                f"{token.name!r} is a user and a token: rules could not tell them apart"
            )
    digests = [token.digest for token in tokens]
    if len(set(digests)) < len(digests):
        raise file.error("two tokens have the same sha256")


def _groups(table: _Table) -> tuple[dict[str, frozenset[str]], set[str]]:
    """Return the groups of each principal, and the names of all groups."""
    groups: dict[str, set[str]] = {}
    named = set()
    for name in table.left():
        if not _NAME.match(name) or name == AUTHENTICATED:
            raise table.error("a group is called by letters, digits and . _ -", name)
        for member in table.texts(name):
            if not _WHO.match(member) or member.startswith("@") or member == ANONYMOUS:
                raise table.error(f"{member!r} is not the name of a principal", name)
            groups.setdefault(member, set()).add(name)
        named.add(name)
    return {member: frozenset(names) for member, names in groups.items()}, named


def _rule(table: _Table, groups: set[str]) -> Rule:
    who = table.texts("who")
    for each in who:
        if not _WHO.match(each):
            raise table.error(f"{each!r} is neither a principal nor a group such as @team", "who")
        # Groups with a : or / come with tokens of others.
        own = each.startswith("@") and not re.search("[:/]", each)
        if own and each[1:] not in groups | {AUTHENTICATED}:
            raise table.error(f"there is no group {each[1:]!r} under [groups]", "who")
    if not who:
        raise table.error("a rule has to name somebody", "who")
    path = _path(table)
    allow, deny = _rights(table, "allow"), _rights(table, "deny")
    if not allow | deny:
        raise table.error("a rule has to allow or deny something")
    if allow & deny:
        raise table.error("a right cannot be allowed and denied", "deny")
    if path and (allow | deny) & OF_THE_DAEMON:
        rights = " and ".join(sorted(right.value for right in OF_THE_DAEMON))
        raise table.error(f"{rights} are about the whole daemon, so they need the path '/'", "path")
    table.end()
    return Rule(frozenset(who), path, allow, deny, table.line())


def _path(table: _Table) -> bytes:
    spelled = table.take("path", str)
    if not spelled.startswith("/"):
        raise table.error(f"{spelled!r} does not begin with a slash", "path")
    try:
        return check_name(spelled.encode())
    except (BadName, NameTooLong) as error:
        raise table.error(str(error), "path") from None


def _rights(table: _Table, key: str) -> frozenset[Right]:
    rights = set()
    for name in table.texts(key, []):
        try:
            rights.add(Right(name))
        except ValueError:
            known = ", ".join(right.value for right in Right)
            raise table.error(f"{name!r} is not a right; these are: {known}", key) from None
    return frozenset(rights)
