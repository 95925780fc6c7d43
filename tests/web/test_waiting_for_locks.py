"""Requests that wait for a lock which others hold: they hold up nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from httpnas.files.errors import NoLongerWanted
from httpnas.storage.descriptors import owned
from httpnas.storage.locks import _bucket
from httpnas.transfer.disk import THREADS
from tests.files.jobs import FakeJob
from tests.harness import Client, Nas, wait_until
from tests.private import own
from tests.storage.steps import Holder


def bucket(nas: Nas, name: str) -> int:
    with owned(os.open(nas.root, os.O_RDONLY)) as folder:
        return _bucket(folder, name.encode())


@pytest.fixture
def held(nas: Nas) -> str:
    """A file whose lock another process holds."""
    (nas.root / "f").write_bytes(b"a\nb\n")
    return "f"


@pytest.fixture
def holder(nas: Nas, held: str) -> Iterator[Holder]:
    holder = Holder(own(nas.root, "locks") / f"{bucket(nas, held):03x}")
    yield holder
    holder.end()


def with_the_lock_of(nas: Nas, name: str, how_many: int) -> list[str]:
    wanted = bucket(nas, name)
    found = (n for n in (f"n{i}" for i in range(100_000)) if bucket(nas, n) == wanted)
    return [next(found) for _ in range(how_many)]


def with_another_lock(nas: Nas, name: str) -> str:
    return next(n for n in (f"o{i}" for i in range(9)) if bucket(nas, n) != bucket(nas, name))


def locks_open(nas: Nas) -> int:
    """Return how many lock files this process has open."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            found += "/.httpnas/locks/" in os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
    return found


async def until_waiting(nas: Nas, how_many: int) -> None:
    waiting = nas.engine.files._changes._claims
    await nas.in_thread(wait_until, lambda: waiting._waiting == how_many, "all to wait")


@pytest_twisted.ensureDeferred
async def test_many_that_wait_for_one_lock_hold_up_nobody_else(
    nas: Nas, held: str, holder: Holder
) -> None:
    names = with_the_lock_of(nas, held, 2 * THREADS)
    uploads = [Deferred.fromCoroutine(nas.fetch("POST", f"/file/{n}", data=b"x")) for n in names]
    await until_waiting(nas, len(names))
    other = with_another_lock(nas, held)
    assert (await nas.fetch("POST", f"/file/{other}", data=b"y"))[0] == 200
    assert (await nas.fetch("PUT", f"/file/{other}", data=b"z"))[0] == 200
    assert (await nas.fetch("GET", "/ready"))[0] == 200
    assert not any(upload.called for upload in uploads)
    await nas.in_thread(holder.let_go)
    answers: list[Any] = await gatherResults(uploads)
    assert {answer[0] for answer in answers} == {200}
    assert all((nas.root / name).read_bytes() == b"x" for name in names)
    assert locks_open(nas) == 0


@pytest_twisted.ensureDeferred
async def test_who_only_wants_to_know_does_not_wait(nas: Nas, held: str, holder: Holder) -> None:
    assert (await nas.fetch("GET", f"/file/{held}/wc"))[:2] == (200, b"2")
    _, body, headers = await nas.fetch(
        "GET", f"/file/{held}", headers={"Want-Repr-Digest": "sha-256=1"}
    )
    assert body == b"a\nb\n"
    assert headers.hasHeader("Repr-Digest")


REQUESTS: list[tuple[str, str, bytes]] = [
    ("POST", "/file/f", b"new"),
    ("PUT", "/file/f", b"more"),
    ("PUT", "/file/f/mv", b'{"path": "g"}'),
    ("DELETE", "/file/f", b""),
    ("DELETE", "/file/d", b""),
    ("PUT", "/file/d/mv", b'{"path": "e"}'),
]


@pytest.mark.parametrize("method, path, body", REQUESTS)
@pytest_twisted.ensureDeferred
async def test_who_waits_for_too_long_is_told_and_leaves_nothing(
    nas: Nas, holder: Holder, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: bytes
) -> None:
    (nas.root / "d").mkdir()
    monkeypatch.setattr(nas.storage.locks, "_timeout", 0.05)
    status, answer, _ = await nas.fetch(method, path, data=body)
    assert status == 503
    assert b"#contended" in answer
    assert (nas.root / "f").read_bytes() == b"a\nb\n"
    assert (nas.root / "d").exists()
    assert (nas.leftovers(), locks_open(nas)) == ([], 0)


@pytest.mark.parametrize("method, path, body", REQUESTS)
@pytest_twisted.ensureDeferred
async def test_what_waits_is_done_when_the_lock_is_free(
    nas: Nas, holder: Holder, method: str, path: str, body: bytes
) -> None:
    (nas.root / "d").mkdir()
    asked = Deferred.fromCoroutine(nas.fetch(method, path, data=body))
    await until_waiting(nas, 1)
    await nas.in_thread(holder.let_go)
    assert (await asked)[0] == 200
    assert locks_open(nas) == 0
    await nas.in_thread(wait_until, lambda: not nas.leftovers(), "a removed folder to be freed")


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_away_while_its_upload_waits_leaves_no_lock(
    nas: Nas, held: str, holder: Holder
) -> None:
    def send() -> None:
        with Client(nas.port) as client:
            client.send(b"POST /file/f HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nnew")
            wait_until(lambda: nas.engine.files._changes._claims._waiting, "it to wait")

    await nas.in_thread(send)
    await nas.in_thread(holder.let_go)
    await nas.at_rest()
    assert (nas.leftovers(), locks_open(nas)) == ([], 0)
    assert (await nas.fetch("DELETE", f"/file/{held}"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_job_that_is_given_up_while_it_waits_gives_back_what_it_has(
    nas: Nas, holder: Holder
) -> None:
    (nas.root / "d").mkdir()
    job = FakeJob()
    removal = Deferred.fromCoroutine(nas.engine.files.remove(job, b"d"))
    await until_waiting(nas, 1)
    job.given_up = True
    with pytest.raises(NoLongerWanted):
        await removal
    assert (nas.root / "d").exists()
    assert locks_open(nas) == 0


@pytest_twisted.ensureDeferred
async def test_an_append_waits_for_a_program_that_locks_the_file(nas: Nas) -> None:
    if not nas.storage.volume.is_local:
        pytest.skip("the file itself is not locked here")
    (nas.root / "f").write_bytes(b"old ")
    holder = await nas.in_thread(Holder, nas.root / "f")
    try:
        append = Deferred.fromCoroutine(nas.fetch("PUT", "/file/f", data=b"new"))
        await until_waiting(nas, 1)
        (neighbour,) = with_the_lock_of(nas, "f", 1)
        assert (await nas.fetch("POST", f"/file/{neighbour}", data=b"x"))[0] == 200
        await nas.in_thread(holder.let_go)
        assert (await append)[0] == 200
    finally:
        holder.end()
    assert (nas.root / "f").read_bytes() == b"old new"
