"""The steps that tests of the storage are made of."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage.append import Append
from httpnas.storage.listing import Folder
from httpnas.storage.locks import _bucket
from httpnas.storage.record import PAGE
from httpnas.storage.store import Storage, StoredFile
from httpnas.storage.version import Check, Find, Version
from tests.private import runs_of

#: Seconds after which a test that waits for something gives up.
PATIENCE = 30.0
#: Where files have their records: in user xattrs, or in files beside them.
KINDS = ["xattrs", "files"]
#: Marks a test in which it matters where that is, so that it runs for both.
both_kinds = pytest.mark.usefixtures("kind")


class Refused(Exception):
    """What a check raises that does not like the present version."""


def anything(find: Find) -> None:
    """Let whatever is there be changed."""


def only(tag: str) -> Check:
    """Return a check that lets nothing be changed but the version *tag*."""

    def check(find: Find) -> None:
        present = find()
        if present is None or present.tag != tag:
            raise Refused

    return check


def upload(
    storage: Storage,
    name: bytes,
    content: bytes | Iterable[bytes],
    check: Check = anything,
    create_only: bool = False,
) -> Version:
    upload = storage.begin_upload(name, check)
    try:
        for chunk in [content] if isinstance(content, bytes) else content:
            upload.write([chunk])
        return upload.publish(check, create_only)
    finally:
        upload.close()


def begin_append(
    storage: Storage, name: bytes, check: Check = anything, expected: int | None = None
) -> Append:
    append = storage.begin_append(name, check, expected=expected)
    assert isinstance(append, Append)
    return append


def append(
    storage: Storage,
    name: bytes,
    content: bytes,
    check: Check = anything,
    expected: int | None = None,
    key: bytes | None = None,
) -> Version:
    append = storage.begin_append(name, check, expected=expected, key=key)
    if isinstance(append, Version):
        return append
    try:
        append.write([content])
        return append.commit()
    finally:
        append.close()


def opened(storage: Storage, name: bytes) -> StoredFile:
    file = storage.open(name)
    assert isinstance(file, StoredFile)
    return file


def content_of(file: StoredFile) -> bytes:
    """Return the content of the version that was opened, as a download sends it."""
    content = b""
    while len(content) < file.version.size:
        chunk = os.pread(file.fd, file.version.size - len(content), len(content))
        if not chunk:
            break
        content += chunk
    return content


def read(storage: Storage, name: bytes) -> bytes:
    file = opened(storage, name)
    try:
        return content_of(file)
    finally:
        file.close()


def tag(storage: Storage, name: bytes) -> str:
    file = opened(storage, name)
    file.close()
    return file.version.tag


def names(storage: Storage, name: bytes = b"", after: bytes = b"") -> list[bytes]:
    folder = storage.open(name)
    assert isinstance(folder, Folder)
    try:
        return list(folder.names(after))
    finally:
        folder.close()


def remove(storage: Storage, name: bytes) -> None:
    """Remove *name* and free what it took at once."""
    aside = storage.remove(name, anything)
    if aside is not None:
        for _ in storage.reclaim(aside):
            pass


def leftovers(root: Path) -> list[str]:
    """Return what lies in the working folders below *root* beside their leases."""
    runs = runs_of(root)
    return [
        f"{run.name}/{entry}"
        for run in runs.iterdir()
        for entry in os.listdir(run)
        if entry != "lease"
    ]


def outcome(call: Callable[[], Any]) -> Any:
    """Return what *call* returned or raised."""
    try:
        return call()
    except Exception as error:
        return error


def at_once(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run every call in a thread of its own, all let go together; return their outcomes."""
    calls = list(calls)
    outcomes: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(number: int) -> None:
        start.wait()
        outcomes[number] = outcome(calls[number])

    threads = [threading.Thread(target=run, args=[n], daemon=True) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it hangs"
    return outcomes


def process(script: str, *args: str) -> subprocess.Popen[bytes]:
    """Start a Python process of its own that runs *script*."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


_HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
os.write(fd, sys.argv[2].encode())
os.close(fd)
print("given back", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that has an flock(2) on a file.

    :param written: what it writes to the file before it lets go.
    """

    def __init__(self, path: Path, written: str = "") -> None:
        self._process = process(_HOLDER, str(path), written)
        self._next(b"held\n")

    def _next(self, said: bytes) -> None:
        assert self._process.stdout and self._process.stdout.readline() == said

    def let_go(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._next(b"given back\n")

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def need_xattrs(folder: Path) -> None:
    """Skip the test where the file system keeps no user xattrs."""
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"1")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("this file system keeps no user xattrs")
    finally:
        probe.unlink()


def choose(kind: str, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let storages that are made from now on keep their records in the way *kind*."""
    if kind == "xattrs":
        need_xattrs(folder)
        return

    def unsupported(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOTSUP, "not supported")

    for function in ["setxattr", "getxattr", "removexattr"]:
        patch.setattr(os, function, unsupported)


def with_another_lock(folder: int, *taken: tuple[int, bytes]) -> bytes:
    """Return a name in *folder* that has none of the locks of *taken*."""
    buckets = {_bucket(*name) for name in taken}
    return next(
        name for name in (b"%d" % n for n in range(1000)) if _bucket(folder, name) not in buckets
    )


class Died(BaseException):
    """Ends an operation where its daemon dies: it mends nothing that it has begun."""


def both_writes(function: str) -> list[str]:
    """Return what is called for *function*: network file systems are written to at offsets."""
    return ["writev", "pwritev"] if function == "writev" else [function]


def die_at(patch: pytest.MonkeyPatch, function: str, nth: int) -> None:
    """Let the *nth* call of a function of :mod:`os` be the last one, which writes only a part."""
    calls = itertools.count(1)
    for name in both_writes(function):
        patch.setattr(os, name, _dying(function, getattr(os, name), calls, nth))


def _dying(
    function: str, real: Callable[..., Any], calls: Iterator[int], nth: int
) -> Callable[..., Any]:
    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != nth:
            return real(*args, **kwargs)
        if function == "writev":
            # A process that is killed has written up to the end of a page.
            content = b"".join(args[1])
            end = os.fstat(args[0]).st_size
            real(args[0], [content[: max(0, (end + len(content)) // PAGE * PAGE - end)]], *args[2:])
        elif function == "write":
            real(args[0], args[1][:5])
        raise Died

    return dying


def crash(
    storage: Storage, name: bytes, content: bytes, written: int, key: bytes | None = None
) -> None:
    """Leave *name* as a daemon leaves it that dies when *written* bytes of an append are there."""

    def dying(real: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, views: Any, *at: int) -> int:
            if written:
                real(fd, [b"".join(views)[:written]], *at)
            raise Died

        return write

    begun = storage.begin_append(name, anything, key=key)
    assert isinstance(begun, Append)
    begun.write([content])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        on_write(patch, dying)
        begun.commit()


def on_write(
    patch: pytest.MonkeyPatch, wrap: Callable[[Callable[..., int]], Callable[..., int]]
) -> None:
    """Let *wrap* stand before what writes the content of appends."""
    for name in both_writes("writev"):
        patch.setattr(os, name, wrap(getattr(os, name)))


def pends(storage: Storage, name: bytes) -> bool:
    """Tell whether the record of *name* announces something."""
    file = opened(storage, name)
    try:
        record = storage.records.read(file.fd)
        return record is not None and record.pending is not None
    finally:
        file.close()


class Faults:
    """Make the *nth* call of a function of :mod:`os` fail (and all after it, if *lasting*)."""

    def __init__(
        self, patch: pytest.MonkeyPatch, function: str, nth: int, code: int, lasting: bool = False
    ) -> None:
        self.calls = 0
        self.failed_on: list[Any] = []
        for name in both_writes(function):
            patch.setattr(os, name, self._faulty(getattr(os, name), nth, code, lasting))

    def _faulty(
        self, real: Callable[..., Any], nth: int, code: int, lasting: bool
    ) -> Callable[..., Any]:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == nth or (lasting and self.calls > nth):
                self.failed_on.append(args[0])
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return faulty
