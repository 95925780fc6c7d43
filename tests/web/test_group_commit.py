"""Appends that wait for one file are committed together, and each is answered for itself."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from httpnas.storage.append import IN_MEMORY
from tests.harness import Nas
from tests.storage.steps import KINDS, choose


@pytest_twisted.async_yield_fixture(params=KINDS)
async def nas(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Nas]:
    choose(request.param, monkeypatch, tmp_path)
    nas = Nas(tmp_path / "root", durable=True)
    yield nas
    await nas.stop()


async def put_all(nas: Nas, bodies: list[bytes], **fields: str) -> list[tuple[int, bytes, Any]]:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    puts = [
        ensureDeferred(nas.fetch("PUT", "/file/f", data=body, headers=headers)) for body in bodies
    ]
    results: list[tuple[int, bytes, Any]] = await gatherResults(puts)
    return results


@pytest_twisted.ensureDeferred
async def test_appends_that_wait_share_a_sync(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    await nas.fetch("POST", "/file/f", data=b"")
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    bodies = [b"%04d\n" % number for number in range(100)]
    results = await put_all(nas, bodies)
    assert [status for status, _, _ in results] == [200] * 100
    content = (nas.root / "f").read_bytes()
    assert sorted(content.splitlines(keepends=True)) == bodies
    for body, (_, _, headers) in zip(bodies, results, strict=True):
        (end,) = headers.getRawHeaders("Upload-Offset")
        assert content[: int(end)].endswith(body)
    tags = {headers.getRawHeaders("ETag")[0] for _, _, headers in results}
    assert len(tags) == 100
    assert synced.count((nas.root / "f").stat().st_ino) < 50


@pytest_twisted.ensureDeferred
async def test_large_ones_and_small_ones_wait_for_one_file(nas: Nas) -> None:
    await nas.fetch("POST", "/file/f", data=b"")
    sizes = [10, IN_MEMORY + 10, IN_MEMORY - 10, 100, IN_MEMORY // 2, 3 * IN_MEMORY] * 3
    bodies = [b"%04d" % number + b"x" * size + b"\n" for number, size in enumerate(sizes)]
    results = await put_all(nas, bodies)
    assert [status for status, _, _ in results] == [200] * len(bodies)
    assert sorted((nas.root / "f").read_bytes().splitlines(keepends=True)) == bodies


@pytest_twisted.ensureDeferred
async def test_of_repeats_that_wait_together_one_lands(nas: Nas) -> None:
    await nas.fetch("POST", "/file/f", data=b"")
    results = await put_all(nas, [b"x\n"] * 30, Idempotency_Key="key")
    assert {status for status, _, _ in results} == {200}
    assert len({headers.getRawHeaders("ETag")[0] for _, _, headers in results}) == 1
    assert (nas.root / "f").read_bytes() == b"x\n"


@pytest_twisted.ensureDeferred
async def test_of_those_that_wait_for_one_offset_one_lands(nas: Nas) -> None:
    await nas.fetch("POST", "/file/f", data=b"old\n")
    results = await put_all(nas, [b"x\n"] * 30, Upload_Offset="4")
    statuses = sorted(status for status, _, _ in results)
    assert statuses == [200] + [409] * 29
    assert (nas.root / "f").read_bytes() == b"old\nx\n"


@pytest_twisted.ensureDeferred
async def test_a_broken_digest_fails_none_of_those_that_wait_with_it(nas: Nas) -> None:
    await nas.fetch("POST", "/file/f", data=b"")
    wrong = {"Repr-Digest": "sha-256=:" + "A" * 43 + "=:"}
    puts = [
        ensureDeferred(
            nas.fetch("PUT", "/file/f", data=b"%02d\n" % n, headers=wrong if n % 5 == 0 else {})
        )
        for n in range(40)
    ]
    statuses = [status for status, _, _ in await gatherResults(puts)]
    assert statuses == [400 if n % 5 == 0 else 200 for n in range(40)]
    lines = (nas.root / "f").read_bytes().splitlines()
    assert sorted(lines) == [b"%02d" % n for n in range(40) if n % 5]
