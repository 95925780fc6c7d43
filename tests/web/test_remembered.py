"""Line counts and digests that are answered without reading the file again."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from httpnas.storage.append import IN_MEMORY
from tests.harness import Nas, receive_answer, twistd, wait_until
from tests.private import own
from tests.storage.steps import KINDS, choose


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    chosen: str = request.param
    choose(chosen, monkeypatch, tmp_path)
    return chosen


@pytest_twisted.async_yield_fixture
async def nas(kind: str, tmp_path: Path) -> AsyncIterator[Nas]:
    nas = Nas(tmp_path / "root")
    yield nas
    await nas.stop()


@pytest.fixture
def reads(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read of clients' files, by name."""
    seen: list[str] = []

    def spy(function: str) -> None:
        real = getattr(os, function)

        def spied(fd: int, *args: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith(f"{nas.root}/") and "/.httpnas/" not in path:
                seen.append(os.path.relpath(path, nas.root))
            return real(fd, *args)

        monkeypatch.setattr(os, function, spied)

    for function in ["read", "readv", "pread", "preadv", "sendfile", "copy_file_range"]:
        if function == "sendfile":
            continue  # its file is its second argument, and it sends downloads only
        spy(function)
    return seen


async def lines(nas: Nas, name: str) -> int:
    status, body, _ = await nas.fetch("GET", f"/file/{name}/wc")
    assert status == 200
    assert re.fullmatch(rb"\d+", body)
    return int(body)


async def digest(nas: Nas, name: str, algorithm: str, method: str = "HEAD") -> str:
    status, _, headers = await nas.fetch(
        method, f"/file/{name}", headers={"Want-Repr-Digest": f"{algorithm}=1"}
    )
    assert status == 200
    values: list[str] = headers.getRawHeaders("Repr-Digest")
    assert len(values) == 1
    return values[0]


def field(algorithm: str, content: bytes) -> str:
    value = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{b64encode(value).decode()}:"


# Lines


@pytest.mark.parametrize("size", [0, IN_MEMORY + 1], ids=["in memory", "in a temporary"])
@pytest_twisted.ensureDeferred
async def test_lines_that_came_through_the_daemon_are_not_counted_again(
    nas: Nas, reads: list[str], size: int
) -> None:
    await nas.fetch("POST", "/file/f", data=b"a\nb\nc")
    assert await lines(nas, "f") == 2
    await nas.fetch("PUT", "/file/f", data=b"\nd\n" + b"x" * size)
    await nas.fetch("PUT", "/file/f", data=b"\n" * 1000, headers={"Idempotency-Key": "key"})
    await nas.fetch("PUT", "/file/f", data=b"\n" * 1000, headers={"Idempotency-Key": "key"})
    reads.clear()  # a large body is copied from its temporary
    assert await lines(nas, "f") == 1004
    await nas.fetch("PUT", "/file/f/mv", json={"path": "d/g"})
    assert await lines(nas, "d%2Fg") == 1004
    await nas.fetch("PUT", "/file/d/mv", json={"path": "e"})
    assert await lines(nas, "e%2Fg") == 1004
    assert reads == []
    assert (nas.root / "e/g").read_bytes().count(b"\n") == 1004


@pytest_twisted.ensureDeferred
async def test_another_daemon_knows_them_too(nas: Nas, reads: list[str]) -> None:
    await nas.fetch("POST", "/file/f", data=b"a\n")
    other = Nas(nas.root)
    assert await lines(other, "f") == 1
    await other.fetch("PUT", "/file/f", data=b"b\n")
    assert await lines(nas, "f") == 2
    await other.stop()
    assert reads == []


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\n")


def _replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"new\n\n\n")
    os.rename(path.with_suffix(".new"), path)


CHANGES: list[tuple[Callable[[Path], object], int]] = [
    (_append, 3),
    (_replace, 3),
    (os.utime, 2),
    (lambda path: os.truncate(path, 2), 1),
    (lambda path: path.write_bytes(b"\n\n\n\n"), 4),
]


@pytest.mark.parametrize("change, wanted", CHANGES)
@pytest_twisted.ensureDeferred
async def test_a_file_that_others_have_changed_is_counted_once_more(
    nas: Nas, reads: list[str], change: Callable[[Path], object], wanted: int
) -> None:
    await nas.fetch("POST", "/file/f", data=b"a\nb\n")
    assert await lines(nas, "f") == 2
    assert reads == []
    change(nas.root / "f")
    assert await lines(nas, "f") == wanted
    assert set(reads) == {"f"}
    reads.clear()
    assert await lines(nas, "f") == wanted
    await nas.fetch("PUT", "/file/f", data=b"c\n")
    assert await lines(nas, "f") == wanted + 1
    assert reads == []


@pytest_twisted.ensureDeferred
async def test_a_file_that_others_have_made_is_counted_once(nas: Nas, reads: list[str]) -> None:
    (nas.root / "f").write_bytes(b"x\n" * 500_000)
    assert await lines(nas, "f") == 500_000
    assert set(reads) == {"f"}
    reads.clear()
    assert await lines(nas, "f") == 500_000
    assert reads == []


@pytest_twisted.ensureDeferred
async def test_a_file_that_nothing_can_be_remembered_of_is_counted(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nas.root / "f").write_bytes(b"a\nb\n")
    with pytest.MonkeyPatch.context() as patch:

        def read_only(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(30, "read-only")

        for function in ["setxattr", "rename"]:
            patch.setattr(os, function, read_only)
        for _ in range(2):
            assert await lines(nas, "f") == 2


@pytest.mark.parametrize("record", [b"odd", b"[" * 2000, b"\2" * 72])
@pytest_twisted.ensureDeferred
async def test_a_damaged_record_is_not_answered(nas: Nas, record: bytes) -> None:
    await nas.fetch("POST", "/file/f", data=b"a\n")
    if nas.storage.has_xattrs:
        os.setxattr(nas.root / "f", "user.httpnas", record)
    else:
        inode = (nas.root / "f").stat().st_ino
        (own(nas.root, "records") / f"{inode:x}").write_bytes(record)
    assert await lines(nas, "f") == 1


# Digests


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest_twisted.ensureDeferred
async def test_a_digest_is_computed_once(nas: Nas, reads: list[str], algorithm: str) -> None:
    content = os.urandom(100_000) + b"\n"
    await nas.fetch("POST", "/file/f", data=content)
    assert await digest(nas, "f", algorithm) == field(algorithm, content)
    assert set(reads) == {"f"}
    reads.clear()
    assert await digest(nas, "f", algorithm) == field(algorithm, content)
    assert await lines(nas, "f") == content.count(b"\n")  # one fact puts no other out
    await nas.fetch("PUT", "/file/f/mv", json={"path": "g"})
    assert await digest(nas, "g", algorithm) == field(algorithm, content)
    assert reads == []


@pytest_twisted.ensureDeferred
async def test_both_digests_are_kept(nas: Nas, reads: list[str]) -> None:
    await nas.fetch("POST", "/file/f", data=b"content")
    for algorithm in ["sha-256", "sha-512"]:
        await digest(nas, "f", algorithm)
    reads.clear()
    for algorithm in ["sha-256", "sha-512"]:
        assert await digest(nas, "f", algorithm) == field(algorithm, b"content")
    assert reads == []


@pytest.mark.parametrize("name", ["Repr-Digest", "Content-Digest"])
@pytest_twisted.ensureDeferred
async def test_an_announced_digest_is_known(nas: Nas, reads: list[str], name: str) -> None:
    announced = field("sha-256", b"content")
    status, _, _ = await nas.fetch("POST", "/file/f", data=b"content", headers={name: announced})
    assert status == 200
    assert await digest(nas, "f", "sha-256") == announced
    assert reads == []
    assert await digest(nas, "f", "sha-512") == field("sha-512", b"content")
    assert set(reads) == {"f"}


@pytest_twisted.ensureDeferred
async def test_a_wrong_digest_is_not_kept(nas: Nas) -> None:
    await nas.fetch("POST", "/file/f", data=b"old")
    status, _, _ = await nas.fetch(
        "POST", "/file/f", data=b"new", headers={"Repr-Digest": field("sha-256", b"other")}
    )
    assert status == 400
    assert await digest(nas, "f", "sha-256") == field("sha-256", b"old")


@pytest.mark.parametrize("by_others", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_digest_is_that_of_the_present_content(nas: Nas, by_others: bool) -> None:
    await nas.fetch("POST", "/file/f", data=b"old")
    assert await digest(nas, "f", "sha-256") == field("sha-256", b"old")
    announced = field("sha-256", b"+new")
    if by_others:
        with (nas.root / "f").open("ab") as file:
            file.write(b"+new")
    else:
        await nas.fetch("PUT", "/file/f", data=b"+new", headers={"Content-Digest": announced})
    assert await digest(nas, "f", "sha-256") == field("sha-256", b"old+new")
    assert await digest(nas, "f", "sha-256", "GET") == field("sha-256", b"old+new")


# A real daemon


def send(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: nas\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(head.encode() + body)
        status, _, answer = receive_answer(client)
    assert status == 200, answer
    return answer


def data_reads(trace: Path, root: Path) -> list[str]:
    """Return the traced reads of files of clients."""
    return [
        line
        for line in trace.read_text(errors="replace").splitlines()
        if f"<{root}/" in line and f"<{root}/.httpnas" not in line
    ]


def is_traced(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").glob("*/status")
    return all("\nTracerPid:\t0\n" not in status.read_text() for status in threads)


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
def test_a_real_daemon_reads_no_data_for_a_count(tmp_path: Path) -> None:
    root, trace = tmp_path / "root", tmp_path / "trace"
    root.mkdir()
    calls = "pread64,preadv,preadv2,read,readv,mmap,sendfile,copy_file_range"
    with twistd(root) as daemon:
        tracer = subprocess.Popen(
            ["strace", "-f", "-y", "-q", "-e", f"trace={calls}", "-o", str(trace),
             "-p", str(daemon.process.pid)],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            wait_until(lambda: tracer.poll() is not None or is_traced(daemon.process.pid))
            if tracer.poll() is not None:
                pytest.skip("strace may not look at processes here")
            send(daemon.port, "POST", "/file/f", b"a\n" * 100_000)
            send(daemon.port, "PUT", "/file/f", b"b\n" * 10)
            assert send(daemon.port, "GET", "/file/f/wc") == b"100010"
            send(daemon.port, "PUT", "/file/f/mv", b'{"path": "g"}')
            assert send(daemon.port, "GET", "/file/g/wc") == b"100010"
            (root / "others").write_bytes(b"c\n" * 3)
            assert send(daemon.port, "GET", "/file/others/wc") == b"3"  # and this is seen
            wait_until(lambda: data_reads(trace, root), "the trace")
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(20)
    assert all("/others>" in line for line in data_reads(trace, root))
