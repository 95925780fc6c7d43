"""The file of ``--auth`` changes while the daemon runs: at once, whole, and never for the worse."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from httpnas.access import authentication
from httpnas.access.authentication import Authentication
from tests.access import files
from tests.access.files import rule, token, token_of
from tests.harness import Client, Nas, let_daemon_read, logged, wait_until

EVERYTHING = ["list", "read", "create", "append", "replace", "delete"]
CI = {"Authorization": f"Bearer {token_of('ci')}"}
ALLOWED = (token("ci"), rule("ci", "/", EVERYTHING))
DENIED = (token("ci"),)


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nas]:
    monkeypatch.setattr(authentication, "LOOKS", 0.05)
    nas = Nas(tmp_path / "root", auth=files.write(tmp_path, *ALLOWED))
    (nas.root / "f").write_bytes(b"x")
    yield nas
    await nas.stop()


def asking_of(nas: Nas) -> Authentication:
    """Return what asks who it is in *nas*."""
    assert nas.authentication is not None
    return nas.authentication


async def status(nas: Nas) -> int:
    return (await nas.fetch("GET", "/file/f", headers=CI))[0]


async def reloaded(nas: Nas, tmp_path: Path, *tables: str) -> None:
    files.write(tmp_path, *tables)
    await asking_of(nas).reload()


def write_in_place_of(path: Path, text: str) -> None:
    """Change a file as programs do that are careful, and as Kubernetes does."""
    path.with_suffix(".new").write_text(text)
    os.rename(path.with_suffix(".new"), path)


async def noticed(nas: Nas, what: str) -> None:
    """Wait until the policy is another one."""
    asking = asking_of(nas)
    before = asking.policy
    await nas.in_thread(wait_until, lambda: asking.policy is not before, what)


@pytest_twisted.ensureDeferred
async def test_a_change_of_the_file_counts_from_the_next_request_on(
    nas: Nas, tmp_path: Path
) -> None:
    assert await status(nas) == 200
    for tables, expected in ((DENIED, 403), (("",), 401), (ALLOWED, 200)):
        await reloaded(nas, tmp_path, *tables)
        assert await status(nas) == expected


@pytest_twisted.ensureDeferred
async def test_a_change_is_noticed(nas: Nas, tmp_path: Path) -> None:
    text = (tmp_path / "auth.toml").read_text()
    write_in_place_of(tmp_path / "auth.toml", text.replace("/", "/elsewhere"))
    await noticed(nas, "a change of the rules to count")
    assert await status(nas) == 403
    write_in_place_of(tmp_path / "htpasswd", f"bob:{files.HASHED}\n")
    await noticed(nas, "a change of the passwords to count")
    assert "bob" in asking_of(nas).policy.hashes


@pytest_twisted.ensureDeferred
async def test_a_file_that_does_not_change_is_not_read_again(nas: Nas) -> None:
    asking = asking_of(nas)
    before = asking.policy
    for _ in range(5):
        await asking._reload_if_changed()
    assert asking.policy is before


@pytest.mark.parametrize("broken", ["realm = 1\n", "[[rule]]\nwho = [", None])
@pytest_twisted.ensureDeferred
async def test_a_broken_file_keeps_the_old_one_and_says_so_once(
    nas: Nas, tmp_path: Path, broken: str | None
) -> None:
    path = tmp_path / "auth.toml"
    good = path.read_text()
    asking = asking_of(nas)
    with logged() as events:
        write_in_place_of(path, broken) if broken is not None else path.unlink()

        def told() -> list[str]:
            return [str(e["error"]) for e in events if "audit" in (e.get("log_format") or "")]

        await nas.in_thread(wait_until, told, "the error to be logged")
        for _ in range(5):
            await asking._reload_if_changed()
        assert len(told()) == 1
        assert told()[0].startswith(str(path))
        assert await status(nas) == 200
    write_in_place_of(path, good + rule("ci", "/", ["sign"]))
    await noticed(nas, "the mended file to count")
    assert await status(nas) == 200


@pytest_twisted.ensureDeferred
async def test_a_broken_file_of_passwords_is_looked_at_until_it_is_mended(
    nas: Nas, tmp_path: Path
) -> None:
    asking = asking_of(nas)
    await reloaded(nas, tmp_path, *DENIED)
    good = (tmp_path / "htpasswd").read_text()
    (tmp_path / "htpasswd").write_text("alice:plain\n")
    await asking.reload()
    assert "alice" in asking.policy.hashes
    write_in_place_of(tmp_path / "htpasswd", good.replace("alice", "carol"))
    await noticed(nas, "the mended file to count")
    assert "carol" in asking.policy.hashes


@pytest_twisted.ensureDeferred
async def test_what_was_admitted_runs_on(nas: Nas, tmp_path: Path) -> None:
    def begin() -> Client:
        client = Client(nas.port)
        head = f"POST /file/new HTTP/1.1\r\nHost: nas\r\nAuthorization: {CI['Authorization']}\r\n"
        client.send(f"{head}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n".encode())
        assert client.answer()[0] == 100
        client.send(b"12")
        let_daemon_read()
        return client

    client = await nas.in_thread(begin)
    with client:
        await reloaded(nas, tmp_path, *DENIED)
        assert await status(nas) == 403
        client.send(b"34")
        assert (await nas.in_thread(client.answer))[0] == 200
    assert (nas.root / "new").read_bytes() == b"1234"


@pytest_twisted.ensureDeferred
async def test_no_moment_of_a_change_is_open(nas: Nas, tmp_path: Path) -> None:
    """What neither the old nor the new rules allow is never allowed."""
    seen = set()
    for number in range(30):
        tables = (
            token("ci"),
            rule("ci", f"/other{number}", EVERYTHING),
            rule("ci", "/o", ["read"]),
        )
        files.write(tmp_path, *tables)
        if number == 0:
            await asking_of(nas).reload()
            continue
        changing = ensureDeferred(asking_of(nas).reload())
        while not changing.called:
            seen.add(await status(nas))
        await changing
        seen.add(await status(nas))
    assert seen == {403}
