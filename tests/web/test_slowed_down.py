"""Clients whose credentials are wrong again and again, and passwords that have to wait."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from httpnas.access import passwords
from httpnas.fields.clients import network_of
from tests.access import files
from tests.access.files import rule, token, token_of
from tests.harness import Nas, wait_until

AT_ONCE = passwords.AT_ONCE


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"alice:{password}".encode()).decode()}


def bearing(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_of(name)}"}


def make(folder: Path, **options: Any) -> Nas:
    auth = files.write(
        folder,
        token("ci"),
        rule("ci", "/", ["list", "see-metrics"]),
        rule("alice", "/", ["list"]),
        rule("anonymous", "/", ["list"]),
    )
    return Nas(folder / "root", auth=auth, **options)


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    nas = make(tmp_path)
    yield nas
    await nas.stop()


async def status(nas: Nas, headers: dict[str, str]) -> int:
    answered: int = (await nas.fetch("GET", "/file/", headers=headers))[0]
    return answered


@pytest_twisted.ensureDeferred
async def test_wrong_tokens_are_slowed_down_and_right_ones_are_not(nas: Nas) -> None:
    got = [await status(nas, bearing(f"wrong-{number}")) for number in range(AT_ONCE + 3)]
    assert got == [401] * AT_ONCE + [429] * 3
    answer = await nas.fetch("GET", "/file/", headers=bearing("wrong"))
    assert json.loads(answer[1])["type"] == "/docs/problems#too-many-failures"
    (seconds,) = answer[2].getRawHeaders("Retry-After")
    assert 1 <= int(seconds) <= passwords.EVERY
    assert await status(nas, bearing("ci")) == 200
    assert await status(nas, basic("secret")) == 200, (
        "an expired token keeps nobody from signing in"
    )
    assert await status(nas, {}) == 200
    metrics = (await nas.fetch("GET", "/metrics", headers=bearing("ci")))[1].decode()
    assert 'httpnas_problems_total{code="too-many-failures"} 4.0' in metrics


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_nobody_is_slowed_down(tmp_path: Path) -> None:
    nas = make(tmp_path, proxies=[network_of("127.0.0.1")])
    try:
        for number in range(2 * AT_ONCE):
            assert await status(nas, basic(f"wrong-{number}")) == 401
            assert await status(nas, bearing(f"wrong-{number}")) == 401
        assert await status(nas, basic("secret")) == 200
    finally:
        await nas.stop()


@pytest_twisted.ensureDeferred
async def test_a_password_for_which_there_is_no_room_has_to_come_again(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(passwords, "WAITING", 1)
    monkeypatch.setattr(passwords, "is_right", lambda kept, password: go_on.wait(20) and False)
    checker = nas.authentication
    assert checker is not None
    most = passwords.THREADS + 1
    asked = [
        Deferred.fromCoroutine(status(nas, basic(f"wrong-{number}"))) for number in range(most)
    ]
    await nas.in_thread(wait_until, lambda: checker.passwords.waiting == most, "all to wait")
    try:
        answer = await nas.fetch("GET", "/file/", headers=basic("one more"))
        assert (answer[0], answer[2].getRawHeaders("Retry-After")) == (503, ["5"])
        assert json.loads(answer[1])["type"] == "/docs/problems#too-many-passwords"
        metrics = (await nas.fetch("GET", "/metrics", headers=bearing("ci")))[1].decode()
        assert f"httpnas_passwords_waiting {most}.0" in metrics
        assert f"httpnas_passwords_hashed_total {most}.0" in metrics
        assert 'httpnas_problems_total{code="too-many-passwords"} 1.0' in metrics
    finally:
        go_on.set()
    assert [await each for each in asked] == [401] * most
    assert checker.passwords.waiting == 0
