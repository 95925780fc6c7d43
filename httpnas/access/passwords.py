"""Passwords: HTTP Basic (RFC 7617) against a file as ``htpasswd`` of Apache writes it.

A good hash takes a tenth of a second of a processor. So it is made in threads of its own, for a
bounded number of requests, and a password that was right is remembered for some minutes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import argon2
import bcrypt
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from httpnas.access.errors import TooManyFailures, TooManyPasswords
from httpnas.access.pace import Pace

#: Passwords that are hashed at the same time, and that may wait for that.
THREADS, WAITING = 2, 64
#: Seconds for which a password that was right is remembered, and how many are.
REMEMBERED, MOST = 300.0, 1024
#: Wrong passwords that a client may try at once, and seconds between further ones.
AT_ONCE, EVERY = 20, 15.0
#: The most that a hash may cost: a hash of the file must not hold up a thread, or take the memory.
_MOST_ROUNDS, _MOST_KIB, _MOST_PASSES, _MOST_LANES = 14, 64 << 10, 10, 16
_USER = re.compile(r"[^:/@\s\x00-\x1f\x7f]{1,255}\Z")
_BCRYPT = re.compile(r"\$2[by]\$([0-9]{2})\$[./A-Za-z0-9]{53}\Z")


class BadPasswords(ValueError):
    """The file of passwords cannot be used.

    :ivar line: where.
    """

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def read_passwords(text: str) -> dict[str, str]:
    """Return the hash of each user.

    :param text: of a file with a line ``NAME:HASH`` for each; empty lines, and those that begin
        with ``#``, mean nothing. Hashes are those of bcrypt (``$2y$`` or ``$2b$``, at most 14
        rounds) and argon2id.
    :raises BadPasswords: when a line is anything else. The hash is not repeated.
    """
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, kept = line.strip().partition(":")
        if not colon or not _USER.match(user):
            raise BadPasswords(
                number, "a line is NAME:HASH, and a name has none of : / @ and space"
            )
        if user in hashes:
            raise BadPasswords(number, f"{user!r} has two lines")
        _check_hash(number, kept)
        hashes[user] = kept
    return hashes


def _check_hash(line: int, kept: str) -> None:
    if found := _BCRYPT.match(kept):
        if not 4 <= int(found[1]) <= _MOST_ROUNDS:
            raise BadPasswords(line, f"bcrypt may have 4 to {_MOST_ROUNDS} rounds")
        return
    if not kept.startswith("$argon2id$"):
        raise BadPasswords(line, "the hash is neither bcrypt ($2y$) nor argon2id: htpasswd -B")
    try:
        costs = argon2.extract_parameters(kept)
    except (argon2.exceptions.InvalidHashError, ValueError, LookupError):
        raise BadPasswords(line, "the hash of argon2id is broken") from None
    if (
        costs.memory_cost > _MOST_KIB
        or costs.time_cost > _MOST_PASSES
        or costs.parallelism > _MOST_LANES
    ):
        raise BadPasswords(
            line,
            f"argon2id may have at most m={_MOST_KIB}, t={_MOST_PASSES} and p={_MOST_LANES}",
        )


def is_right(kept: str, password: bytes) -> bool:
    """Tell whether *password* is the one that *kept* is the hash of; takes a tenth of a second."""
    try:
        if kept.startswith("$argon2id$"):
            return argon2.PasswordHasher().verify(kept, password)
        # It raises for more than 72 bytes, of which it looks at no others.
        return bcrypt.checkpw(password, kept.encode())
    except (argon2.exceptions.Argon2Error, argon2.exceptions.InvalidHashError, ValueError):
        return False


def credentials_of(encoded: bytes) -> tuple[str, bytes] | None:
    """Return user and password of what follows ``Basic`` (RFC 7617 section 2); None for neither."""
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
        return (user.decode(), password) if colon and b"\0" not in password else None
    except (binascii.Error, UnicodeDecodeError):
        return None


class Passwords:
    """Checks passwords.

    :param reactor: tells the time, and delivers results.
    :ivar hashed: how many hashes have been made.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, THREADS, name="httpnas-passwords")
        self._secret = os.urandom(32)
        #: Until when each is remembered, by what stands for it; the oldest first.
        self._right: dict[bytes, float] = {}
        self._asking: dict[bytes, list[Deferred[bool]]] = {}
        self._wrong = Pace(AT_ONCE, EVERY)
        self.hashed = 0

    def start(self) -> None:
        """Begin to check."""
        self._pool.start()

    def stop(self) -> None:
        """Wait for the hashes that are being made."""
        self._pool.stop()

    @property
    def waiting(self) -> int:
        """How many passwords wait for a hash, or are being hashed."""
        return len(self._asking)

    def check(
        self, hashes: Mapping[str, str], user: str, password: bytes, client: bytes | None = None
    ) -> Deferred[bool] | bool:
        """Tell whether *password* is that of *user*; at once when it was right of late.

        It takes as long for a user that there is not. A hash counts as wrong until it is known to
        be right, so that a client gains nothing by trying many at the same time.

        :param hashes: as of :func:`read_passwords`.
        :param client: who asks, None when that is not counted.
        :raises TooManyPasswords: when :data:`WAITING` others wait.
        :raises TooManyFailures: when the client has had too many that were wrong.
        """
        kept = hashes.get(user) or next(iter(hashes.values()))
        # With the hash in it, so that a password that was changed is not remembered.
        whose = b"\0".join((user.encode(), kept.encode(), password))
        key = hashlib.blake2b(whose, key=self._secret, digest_size=32).digest()
        until = self._right.get(key)
        if until is not None and self._reactor.seconds() < until:
            return True
        asking = Deferred[bool]()
        if (others := self._asking.get(key)) is not None:
            others.append(asking)
            return asking
        if len(self._asking) >= WAITING + THREADS:
            raise TooManyPasswords
        if key in self._right:  # it was right, some time ago: so this is no guess
            client = None
        if client is not None and (wait := self._wrong.take(client, self._reactor.seconds())):
            raise TooManyFailures(wait)
        self.hashed += 1
        self._asking[key] = [asking]
        check: Callable[[], bool] = lambda: is_right(kept, password) and user in hashes  # noqa: E731
        deferToThreadPool(self._reactor, self._pool, check).addBoth(self._checked, key, client)
        return asking

    def _checked(self, result: bool | Failure, key: bytes, client: bytes | None) -> None:
        if result is True:
            if client is not None:
                self._wrong.give_back(client)
            self._right.pop(key, None)
            self._right[key] = self._reactor.seconds() + REMEMBERED
            if len(self._right) > MOST:
                del self._right[next(iter(self._right))]
        for each in self._asking.pop(key):
            each.callback(result)
