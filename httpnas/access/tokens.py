"""Bearer tokens (RFC 6750): random, with a name and an expiry. Only their SHA-256 is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

#: What every token begins with, so that programs that look for leaked secrets find it.
PREFIX = "httpnas_"


def new_token() -> str:
    """Return a token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: bytes) -> bytes:
    """Return what is kept of *token*. It is random, so a fast hash is as good as a slow one."""
    return hashlib.sha256(token).digest()


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token.

    :ivar name: of its principal.
    :ivar digest: as :func:`digest_of` makes it.
    :ivar expires: in seconds since the epoch.
    """

    name: str
    digest: bytes
    expires: float


class Tokens:
    """All tokens."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._by_digest = {token.digest: token for token in tokens}

    def __len__(self) -> int:
        return len(self._by_digest)

    def expiry(self, name: str) -> float:
        """Return when the last token called *name* expires, in seconds since the epoch."""
        every = self._by_digest.values()
        return max((token.expires for token in every if token.name == name), default=0.0)

    def find(self, presented: bytes) -> Token | None:
        """Return the token that *presented* is, None when it is none or has expired.

        What is compared is a digest, of which nobody can choose the beginning.
        """
        digest = digest_of(presented)
        token = self._by_digest.get(digest)
        if token is None or not hmac.compare_digest(token.digest, digest):
            return None
        return token if time.time() < token.expires else None
