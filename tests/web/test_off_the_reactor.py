"""What may take long is done in pool threads, and what a client breaks off leaves no trace."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import pytest_twisted

from tests.files.jobs import FakeJob
from tests.harness import Nas, logged


@pytest_twisted.ensureDeferred
async def test_a_folder_is_read_in_a_pool_thread(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    (nas.root / "f").write_bytes(b"")
    real, threads = os.scandir, []

    def scandir(where: int) -> object:
        threads.append(threading.current_thread())
        return real(where)

    monkeypatch.setattr(os, "scandir", scandir)
    assert (await nas.fetch("GET", "/file/"))[1] == b"f\n"
    assert threads and threading.main_thread() not in threads


@pytest_twisted.ensureDeferred
async def test_the_last_close_of_a_replaced_file_is_left_to_a_pool_thread(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "f").write_bytes(b"old")
    closed = threading.Event()
    thread: list[threading.Thread] = []
    async with nas.engine.files.open(FakeJob(), b"f") as opened:
        (nas.root / "f").unlink()

        def close() -> None:
            thread.append(threading.current_thread())
            os.close(opened.fd)
            closed.set()

        monkeypatch.setattr(opened, "close", close)
    assert await nas.in_thread(closed.wait, 10)
    assert threading.main_thread() not in thread


@pytest_twisted.ensureDeferred
async def test_a_body_that_is_not_http_in_the_middle_of_a_listing_is_refused_quietly(
    nas: Nas,
) -> None:
    with logged() as events:
        answer = await nas.talk(
            b"GET /file/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"X-Request-ID: " in answer
    assert [event["log_failure"] for event in events if "log_failure" in event] == []


@pytest_twisted.ensureDeferred
async def test_a_root_in_whose_place_another_folder_stands_is_not_healthy(nas: Nas) -> None:
    elsewhere: Path = nas.root.with_name("elsewhere")
    nas.root.rename(elsewhere)
    nas.root.mkdir()
    try:
        assert (await nas.fetch("GET", "/file"))[0] == 503
    finally:
        nas.root.rmdir()
        elsewhere.rename(nas.root)
    assert (await nas.fetch("GET", "/file"))[0] == 200
