"""Passwords: checked in threads, in a bounded queue, and remembered without being kept."""

from __future__ import annotations

import base64
import gc
from collections.abc import AsyncIterator
from typing import Any

import argon2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from httpnas.access import passwords
from httpnas.access.errors import TooManyFailures, TooManyPasswords
from httpnas.access.passwords import Passwords, credentials_of, is_right
from tests.access.files import HASHED

USERS = {"alice": HASHED}


class Time:
    """A reactor whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest_twisted.async_yield_fixture
async def checker(time: Time) -> AsyncIterator[Passwords]:
    checker = Passwords(time)
    checker.start()
    yield checker
    checker.stop()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The passwords that were hashed."""
    seen: list[bytes] = []

    def counted(kept: str, password: bytes) -> bool:
        seen.append(password)
        return is_right(kept, password)

    monkeypatch.setattr(passwords, "is_right", counted)
    return seen


async def check(checker: Passwords, user: str, password: bytes) -> bool:
    checked = checker.check(USERS, user, password)
    return await checked if isinstance(checked, Deferred) else checked


def test_both_hashes_know_their_password_and_no_other() -> None:
    argon = argon2.PasswordHasher(time_cost=1, memory_cost=64).hash("secret")
    for kept in (HASHED, argon):
        assert is_right(kept, b"secret")
        assert not is_right(kept, b"secre")
        assert not is_right(kept, b"")
        assert not is_right(kept, b"\xff")


def test_a_password_beyond_what_bcrypt_looks_at_is_wrong() -> None:
    import bcrypt  # noqa: PLC0415

    kept = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert is_right(kept, b"x" * 72)
    assert not is_right(kept, b"x" * 73)


@pytest_twisted.ensureDeferred
async def test_a_password_that_was_right_is_remembered_for_minutes(
    checker: Passwords, time: Time, hashed: list[bytes]
) -> None:
    assert await check(checker, "alice", b"secret")
    time.now = passwords.REMEMBERED - 1
    assert checker.check(USERS, "alice", b"secret") is True
    assert len(hashed) == 1
    time.now = passwords.REMEMBERED + 1
    assert await check(checker, "alice", b"secret")
    assert len(hashed) == 2


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_and_an_unknown_user_take_a_hash_each_time(
    checker: Passwords, hashed: list[bytes]
) -> None:
    for _ in range(2):
        assert not await check(checker, "alice", b"wrong")
        assert not await check(checker, "nobody", b"secret")
    assert len(hashed) == 4


@pytest_twisted.ensureDeferred
async def test_a_password_is_forgotten_when_the_hash_changes(checker: Passwords) -> None:
    assert await check(checker, "alice", b"secret")
    import bcrypt  # noqa: PLC0415

    changed = {"alice": bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode()}
    checked = checker.check(changed, "alice", b"secret")
    assert isinstance(checked, Deferred)
    assert not await checked


@pytest_twisted.ensureDeferred
async def test_who_asks_the_same_at_the_same_time_shares_a_hash(
    checker: Passwords, hashed: list[bytes]
) -> None:
    asked = [checker.check(USERS, "alice", b"secret") for _ in range(50)]
    answers = await gatherResults([each for each in asked if isinstance(each, Deferred)])
    assert answers == [True] * 50
    assert len(hashed) == 1


@pytest_twisted.ensureDeferred
async def test_so_many_wait_and_no_more(
    checker: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "WAITING", 3)
    waiting = [checker.check(USERS, "alice", b"%d" % n) for n in range(3 + passwords.THREADS)]
    with pytest.raises(TooManyPasswords):
        checker.check(USERS, "alice", b"one more")
    await gatherResults([each for each in waiting if isinstance(each, Deferred)])
    assert not await check(checker, "alice", b"one more")


@pytest_twisted.ensureDeferred
async def test_a_client_whose_passwords_are_wrong_is_slowed_down_and_others_are_not(
    checker: Passwords, time: Time, hashed: list[bytes]
) -> None:
    async def guess(client: bytes | None, password: bytes = b"wrong") -> bool:
        checked = checker.check(USERS, "alice", password, client)
        return await checked if isinstance(checked, Deferred) else checked

    for number in range(passwords.AT_ONCE):
        assert not await guess(b"a", b"%d" % number)
    for _ in range(3):
        with pytest.raises(TooManyFailures) as refused:
            await guess(b"a", b"secret")
    assert refused.value.seconds == passwords.EVERY
    assert len(hashed) == passwords.AT_ONCE
    assert await guess(b"b", b"secret"), "others are not slowed down"
    assert await guess(b"a", b"secret"), "what is known to be right is not refused"
    with pytest.raises(TooManyFailures):
        await guess(b"a")
    assert not await guess(None), "who is not counted is not slowed down"
    time.now = passwords.EVERY
    assert not await guess(b"a")
    with pytest.raises(TooManyFailures):
        await guess(b"a")


@pytest_twisted.ensureDeferred
async def test_who_is_known_is_not_locked_out_by_others_at_his_address(
    checker: Passwords, time: Time, hashed: list[bytes]
) -> None:
    assert await check(checker, "alice", b"secret")
    time.now = 10 * passwords.REMEMBERED
    for number in range(passwords.AT_ONCE):
        checked = checker.check(USERS, "alice", b"%d" % number, b"a")
        assert isinstance(checked, Deferred) and not await checked
    with pytest.raises(TooManyFailures):
        checker.check(USERS, "alice", b"wrong", b"a")
    again = checker.check(USERS, "alice", b"secret", b"a")
    assert isinstance(again, Deferred) and await again, "it is hashed again, and does not count"
    with pytest.raises(TooManyFailures):
        checker.check(USERS, "alice", b"wrong", b"a")


@pytest_twisted.ensureDeferred
async def test_a_client_gains_nothing_by_guessing_at_the_same_time(
    checker: Passwords,
) -> None:
    asked = [
        checker.check(USERS, "alice", b"%d" % number, b"a") for number in range(passwords.AT_ONCE)
    ]
    with pytest.raises(TooManyFailures):
        checker.check(USERS, "alice", b"one more", b"a")
    await gatherResults([each for each in asked if isinstance(each, Deferred)])


@pytest_twisted.ensureDeferred
async def test_passwords_that_are_right_do_not_count(checker: Passwords, time: Time) -> None:
    for _ in range(3 * passwords.AT_ONCE):
        checked = checker.check(USERS, "alice", b"secret", b"a")
        assert isinstance(checked, Deferred) and await checked
        checker._right.clear()


@pytest_twisted.ensureDeferred
async def test_what_is_remembered_is_bounded_and_holds_no_password(
    checker: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "MOST", 2)
    monkeypatch.setattr(passwords, "is_right", lambda kept, password: True)
    for number in range(5):
        assert await check(checker, "alice", b"password-%d" % number)
    assert len(checker._right) == 2
    gc.collect()
    assert "password-" not in repr(vars(checker))


@pytest.mark.parametrize(
    "encoded, credentials",
    [
        (b"alice:secret", ("alice", b"secret")),
        (b"alice:se:cret", ("alice", b"se:cret")),
        ("é:ü".encode(), ("é", "ü".encode())),
        (b"alice", None),
        (b"\xff:x", None),
        (b"alice:a\0b", None),
    ],
)
def test_credentials_are_read_as_rfc_7617_has_them(
    encoded: bytes, credentials: tuple[str, bytes] | None
) -> None:
    assert credentials_of(base64.b64encode(encoded)) == credentials


@pytest.mark.parametrize("encoded", [b"", b"%", b"YQ", b"YW xpY2U6eA==", b"\xff"])
def test_credentials_that_are_no_base64_are_none(encoded: bytes) -> None:
    assert credentials_of(encoded) is None
