"""Files of ``--auth`` for tests."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from httpnas.access.tokens import digest_of

#: A hash of "secret" that takes no time, as a hash should.
HASHED = "$2y$04$B8v1oNNmldA1DwEAi1/HSeFr.X50TNWSWqVCn0d3bNu0ZD7YWrtYq"


def link_key(identity: str, secret: bytes = b"s" * 32) -> str:
    """Return the table of a key for links."""
    encoded = base64.b64encode(secret).decode()
    return f'[[link-key]]\nid = "{identity}"\nsecret = "{encoded}"\n'


def token_of(name: str) -> str:
    """Return the token of the principal *name*."""
    return f"httpnas_{name}"


def token(name: str, expires: str = "2999-01-01T00:00:00Z") -> str:
    """Return the table of a token."""
    digest = digest_of(token_of(name).encode()).hex()
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\nexpires = {expires}\n'


def rule(who: str, path: str, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> str:
    """Return the table of a rule."""
    rights = f"allow = {[*allow]}\ndeny = {[*deny]}\n"
    return f'[[rule]]\nwho = ["{who}"]\npath = "{path}"\n{rights}'


def write(folder: Path, *tables: str) -> Path:
    """Write a file of ``--auth``, and a file of passwords in which ``alice`` has "secret"."""
    (folder / "htpasswd").write_text(f"# users\nalice:{HASHED}\n")
    path = folder / "auth.toml"
    path.write_text('passwords = "htpasswd"\n' + "".join(tables))
    return path
