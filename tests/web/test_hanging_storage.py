"""A storage that does not answer, or has gone and come back: nobody waits for ever."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from httpnas.transfer import watchdog
from httpnas.transfer.disk import THREADS, AwakeTime
from tests.harness import Client, Nas, wait_until

#: Seconds that the storage is waited for here.
PATIENCE = 0.3


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "GRACE", 0.5)
    monkeypatch.setattr(watchdog, "_SUSPECT", 0.1)
    monkeypatch.setattr(watchdog, "_PAUSE", 0.1)


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nas]:
    daemon = Nas(tmp_path / "root", patience=PATIENCE)
    # As on a network file system, nothing is taken from the kernel's memory.
    daemon.storage.opens_at_once = False
    monkeypatch.setattr("httpnas.transfer.sender._NOWAIT", 0)
    daemon.site._watch.stop()
    daemon.site._watch.start(0.05)
    yield daemon
    await daemon.stop()


class Gate:
    """Holds calls of the disk up in their threads, all or some, until it is opened."""

    def __init__(self, nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._open.set()
        self._holds: Callable[[Callable[..., Any]], bool] = lambda call: True
        monkeypatch.setattr(nas.disk, "run", partial(self._gated, nas.disk.run))
        monkeypatch.setattr(nas.disk, "probe", partial(self._gated, nas.disk.probe))

    def _gated(self, run: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._holds(call):
            return run(call, *args, **kwargs)
        return run(partial(self._wait, call, *args, **kwargs))

    def _wait(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._open.wait(20)
        return call(*args, **kwargs)

    def close(self, holds: Callable[[Callable[..., Any]], bool] = lambda call: True) -> None:
        self._holds = holds
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(nas, monkeypatch)
    yield gate
    gate.open()


def is_call_of(function: Callable[..., Any], call: Callable[..., Any]) -> bool:
    """Tell whether *call* is *function*, maybe with some of its arguments."""
    return getattr(call, "func", call) == function


def ask(nas: Nas, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with Client(nas.port) as client:
        client.send(request)
        return client.answer()


def assert_come_again(answer: tuple[int, dict[str, str], bytes]) -> None:
    status, headers, body = answer
    assert (status, headers["retry-after"]) == (503, "5"), body
    assert headers["content-type"] == "application/problem+json"


async def until_away(nas: Nas) -> None:
    await nas.in_thread(wait_until, lambda: nas.engine.watchdog.away, "the storage to be away")


async def until_nothing_is_left(nas: Nas) -> None:
    # A look at the storage has a file of its own there for a moment.
    await nas.in_thread(wait_until, lambda: not nas.leftovers(), "nothing to be left")


REQUESTS = {
    "download": b"GET /file/f HTTP/1.1\r\nHost: a\r\n\r\n",
    "count": b"GET /file/f/wc HTTP/1.1\r\nHost: a\r\n\r\n",
    "list": b"GET /file/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "upload": b"POST /file/f HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nnew",
    "append": b"PUT /file/f HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nmore",
    "move": b'PUT /file/f/mv HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{"path": "g"}',
    "delete": b"DELETE /file/f HTTP/1.1\r\nHost: a\r\n\r\n",
    "form": (
        b"POST /files/ HTTP/1.1\r\nHost: a\r\nContent-Length: 72\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b"--x\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\nnew\r\n--x--"
    ),
}


@pytest.mark.parametrize("verb", REQUESTS)
@pytest_twisted.ensureDeferred
async def test_what_waits_for_a_storage_that_hangs_is_told_to_come_again_and_changes_nothing(
    nas: Nas, gate: Gate, verb: str
) -> None:
    (nas.root / "f").write_bytes(b"old")
    gate.close()

    assert_come_again(await nas.in_thread(ask, nas, REQUESTS[verb]))
    gate.open()
    await nas.at_rest()
    assert {path.name for path in nas.root.iterdir()} == {"f", ".httpnas"}
    assert (nas.root / "f").read_bytes() == b"old"
    await until_nothing_is_left(nas)
    status, _, _ = await nas.fetch("POST", "/file/f", data=b"newer")
    assert status == 200


@pytest_twisted.ensureDeferred
async def test_an_upload_that_was_under_way_is_told_and_leaves_nothing(
    nas: Nas, gate: Gate
) -> None:
    def upload() -> tuple[int, dict[str, str], bytes]:
        with Client(nas.port) as client:
            client.send(b"POST /file/f HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
            wait_until(nas.leftovers, "the upload to begin")
            gate.close()
            client.send(b"x" * (5 << 20))
            return client.answer()

    assert_come_again(await nas.in_thread(upload))
    gate.open()
    await nas.at_rest()
    assert not (nas.root / "f").exists()
    await until_nothing_is_left(nas)
    (ended,) = nas.engine.trace.record()["ended"]
    assert (ended["outcome"], ended["status"]) == ("refused", 503)


@pytest_twisted.ensureDeferred
async def test_a_download_that_was_under_way_is_cut_off(nas: Nas, gate: Gate) -> None:
    content = bytes(1 << 20) * 40
    (nas.root / "f").write_bytes(content)

    def download() -> bytes:
        with Client(nas.port, buffer=1 << 16) as client:
            client.send(REQUESTS["download"])
            received = client.socket.recv(1 << 16)
            gate.close()
            return received + client.rest()

    with pytest.raises(ConnectionResetError):
        await nas.in_thread(download)


@pytest_twisted.ensureDeferred
async def test_who_comes_while_the_storage_hangs_is_told_at_once_but_operators_are_served(
    nas: Nas, gate: Gate
) -> None:
    (nas.root / "f").write_bytes(b"old")
    gate.close()
    first = Deferred.fromCoroutine(nas.fetch("GET", "/file/f"))
    await until_away(nas)
    pending = len(nas.disk._pending)
    for request in REQUESTS.values():
        assert_come_again(await nas.in_thread(ask, nas, request))
    assert len(nas.disk._pending) == pending
    for path, wanted in {"/health": 200, "/transfers": 200, "/": 200, "/ready": 503}.items():
        assert (await nas.fetch("GET", path))[0] == wanted, path
    assert (await first)[0] == 503
    gate.open()
    await nas.in_thread(wait_until, lambda: not nas.engine.watchdog.away, "it to be back")
    assert (await nas.fetch("GET", "/ready"))[0] == 200
    assert (await nas.fetch("GET", "/file/f"))[1] == b"old"


@pytest_twisted.ensureDeferred
async def test_slow_calls_of_a_storage_that_answers_are_waited_for(nas: Nas, gate: Gate) -> None:
    nas.engine.watchdog._patience = 2.0
    (nas.root / "f").write_bytes(b"a\n" * 10)
    probe = nas.engine.watchdog._probe
    gate.close(holds=lambda call: call != probe)
    answers = [Deferred.fromCoroutine(nas.fetch("GET", "/file/f/wc")) for _ in range(THREADS + 4)]
    await nas.in_thread(wait_until, lambda: nas.disk.oldest > 2.5, "a long wait")
    assert not nas.engine.watchdog.away
    gate.open()
    for answer in answers:
        assert (await answer)[:2] == (200, b"10")


@pytest_twisted.ensureDeferred
async def test_one_call_that_never_ends_holds_its_own_request_only(
    nas: Nas, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LONGEST", 1.0)
    (nas.root / "f").write_bytes(b"a\n" * 10)
    gate.close(holds=partial(is_call_of, nas.storage.remove))
    status, _, _ = await nas.fetch("DELETE", "/file/f")
    assert status == 503
    assert (await nas.fetch("GET", "/file/f/wc"))[:2] == (200, b"10")
    gate.open()
    await nas.at_rest()
    assert (nas.root / "f").exists()


@pytest_twisted.ensureDeferred
async def test_content_that_can_not_be_had_does_not_keep_names_from_being_served(
    nas: Nas, gate: Gate
) -> None:
    """As on CephFS, where content and names are on different hosts."""
    nas.engine.watchdog._patience = 2.0  # a slow machine must not look like a storage that hangs
    (nas.root / "f").write_bytes(b"a\n" * 10)
    held = (nas.engine.watchdog._probe, nas.storage.remove)
    gate.close(holds=lambda call: any(is_call_of(one, call) for one in held))
    deleted = Deferred.fromCoroutine(nas.fetch("DELETE", "/file/f"))
    while not deleted.called:
        assert (await nas.fetch("GET", "/file/"))[0] == 200
    assert (await deleted)[0] == 503


@pytest_twisted.ensureDeferred
async def test_a_download_with_a_body_that_was_given_up_ends_when_the_storage_goes_on(
    nas: Nas, gate: Gate
) -> None:
    (nas.root / "f").write_bytes(b"content")
    gate.close()

    def half() -> Client:
        client = Client(nas.port)
        head = b"GET /file/f HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n"
        client.send(head + b"x" * 66_000)
        assert_come_again(client.answer())
        return client

    client = await nas.in_thread(half)
    gate.open()
    await nas.in_thread(wait_until, lambda: not nas.disk._pending, "the file to be opened")
    await nas.in_thread(client.send, b"x" * 4000)
    await nas.at_rest()
    client.socket.close()


@pytest_twisted.ensureDeferred
async def test_a_body_that_trickles_in_while_nobody_asks_for_it_does_not_put_an_answer_off(
    nas: Nas, gate: Gate
) -> None:
    gate.close()

    def trickle() -> tuple[int, dict[str, str], bytes]:
        with Client(nas.port) as client:
            client.send(b"POST /file/f HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nx")
            return client.answer()

    assert_come_again(await nas.in_thread(trickle))


@pytest_twisted.ensureDeferred
async def test_a_form_that_is_given_up_tells_what_is_stored(nas: Nas, gate: Gate) -> None:
    def send() -> tuple[int, dict[str, str], bytes]:
        part = b"--x\r\nContent-Disposition: form-data; name=file; filename=%b\r\n\r\nnew\r\n"
        with Client(nas.port) as client:
            client.send(
                b"POST /files/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
                + part % b"one"
                + b"--x\r\n"
            )
            wait_until((nas.root / "one").exists, "the first file")
            gate.close()
            client.send((part % b"two")[5:])
            return client.answer()

    answer = await nas.in_thread(send)
    assert_come_again(answer)
    assert json.loads(answer[2])["stored"] == ["one"]


def test_time_for_which_the_process_stood_still_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    awake = AwakeTime()
    for step in (1, 1, 3600):
        now += step
        awake.tick()
    assert 2 <= awake.seconds() < 10


@pytest_twisted.ensureDeferred
async def test_a_daemon_whose_own_folder_was_removed_makes_a_new_one(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old")
    shutil.rmtree(nas.root / ".httpnas")
    assert (await nas.fetch("POST", "/file/g", data=b"new"))[0] == 503

    async def is_back() -> bool:
        return bool((await nas.fetch("POST", "/file/g", data=b"new"))[0] == 200)

    while not await is_back():
        await nas.in_thread(wait_until, lambda: not nas.disk._pending)
    assert (await nas.fetch("GET", "/ready"))[0] == 200
    assert (await nas.fetch("GET", "/file/f"))[1] == b"old"
    assert nas.engine.watchdog.storage is not nas.storage


@pytest_twisted.ensureDeferred
async def test_a_root_that_was_unmounted_is_not_mistaken_for_an_empty_storage(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "f").write_bytes(b"old")
    nas.root.rename(nas.root.with_name("away"))
    nas.root.mkdir()
    assert (await nas.fetch("GET", "/ready"))[0] == 503
    assert list(nas.root.iterdir()) == []
    nas.root.rmdir()
    nas.root.with_name("away").rename(nas.root)
    assert (await nas.fetch("GET", "/ready"))[0] == 200
