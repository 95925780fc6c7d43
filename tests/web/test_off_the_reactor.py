"""What may take long is done in pool threads, and what a client breaks off leaves no trace."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.files.jobs import FakeJob
from tests.harness import Client, Nas, logged, wait_until


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


@pytest.mark.parametrize("together, calls", [(True, 1), (False, 2)])
@pytest_twisted.ensureDeferred
async def test_an_upload_that_came_with_its_head_takes_one_call_of_a_thread(
    nas: Nas, together: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before its body comes only if that has not come yet."""
    real, made = nas.engine.disk.run, []

    def run(call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        made.append(call)
        return real(call, *args)

    monkeypatch.setattr(nas.engine.disk, "run", run)

    def upload() -> int:
        head = b"POST /file/f HTTP/1.1\r\nHost: nas\r\nContent-Length: 4\r\n\r\n"
        with Client(nas.port) as client:
            client.send(head + b"body" * together)
            if not together:
                wait_until(lambda: made, "the head to be handled")
                client.send(b"body")
            return client.answer()[0]

    assert await nas.in_thread(upload) == 200
    assert len(made) == calls
    assert (nas.root / "f").read_bytes() == b"body"
