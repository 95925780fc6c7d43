"""Appends and versions on file systems that are short of something, or can do more than others."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from httpnas.storage import staging
from httpnas.storage.append import IN_MEMORY, Append
from httpnas.storage.record import PAGE
from httpnas.storage.store import Storage
from httpnas.storage.version import Version
from tests.crash import images
from tests.storage.steps import PATIENCE, anything, append, leftovers, process, read, tag, upload

pytestmark = pytest.mark.crash

SIZE = 64 << 20


@pytest.fixture
def ext4(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An ext4 with the options of the test."""
    if reason := images.why_not("ext4"):
        pytest.skip(reason)
    with images.folder() as place, images.image(place, "ext4", SIZE, *request.param) as image:
        root = image.mount_point / "root"
        root.mkdir()
        yield root


@pytest.fixture
def storage(ext4: Path) -> Iterator[Storage]:
    with ExitStack() as stack:
        storage = Storage(str(ext4))
        stack.callback(storage.close)
        yield storage


@pytest.mark.parametrize("ext4", [["-b", "1024"], ["-b", "1024", "-I", "128"]], indirect=True)
def test_old_keys_give_way_where_blocks_are_small(storage: Storage, ext4: Path) -> None:
    upload(storage, b"f", b"")
    for number in range(200):
        done = append(storage, b"f", b"x\n", key=b"key-%d" % number)
        assert append(storage, b"f", b"x\n", key=b"key-%d" % number) == done
    assert read(storage, b"f") == b"x\n" * 200
    group = []
    for number in range(40):
        begun = storage.begin_append(b"f", anything, key=b"group-%d" % number)
        assert isinstance(begun, Append)
        begun.write([b"y\n"])
        group.append(begun)
    assert all(isinstance(result, Version) for result in storage.commit(b"f", group))
    assert read(storage, b"f") == b"x\n" * 200 + b"y\n" * 40


@pytest.mark.parametrize("ext4", [["-I", "128"]], indirect=True)
def test_where_times_are_whole_seconds_no_tag_comes_again(storage: Storage, ext4: Path) -> None:
    upload(storage, b"f", b"")
    assert os.stat(ext4 / "f").st_mtime_ns % 10**9 == 0
    tags = set()
    for number in range(100):
        tags.add(upload(storage, b"f", b"balance=%03d\n" % number).tag)
        assert tag(storage, b"f") in tags
        tags.add(append(storage, b"f", b"x").tag)
        assert tag(storage, b"f") in tags
    assert len(tags) == 200


@pytest.mark.parametrize("ext4", [[], ["-I", "128"]], indirect=True, ids=["birth", "no birth"])
@pytest.mark.parametrize("by", ["others", "folder"])
def test_an_inode_that_comes_again_has_taken_nothing_without_xattrs(
    ext4: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    def unsupported(*args: object, **kwargs: object) -> None:
        raise OSError(95, "not supported")

    for function in ["setxattr", "getxattr", "removexattr"]:
        monkeypatch.setattr(os, function, unsupported)
    storage = Storage(str(ext4))
    upload(storage, b"d/f", b"")
    append(storage, b"d/f", b"1\n", key=b"task")
    inode = (ext4 / "d/f").stat().st_ino
    if by == "folder":
        aside = storage.remove(b"d", anything)
        assert aside is not None
        for _ in storage.reclaim(aside):
            pass
    else:
        os.unlink(ext4 / "d/f")
    names = [f"x{number}" for number in range(50)]
    for name in names:
        (ext4 / name).write_text("made by others\n")
    again = [name for name in names if (ext4 / name).stat().st_ino == inode]
    if not again:
        pytest.skip("the inode did not come again")
    append(storage, again[0].encode(), b"must not be lost\n", key=b"task")
    assert read(storage, again[0].encode()) == b"made by others\nmust not be lost\n"
    storage.close()


@pytest.mark.parametrize("ext4", [[]], indirect=True)
def test_a_backup_restored_to_its_old_inode_has_what_it_had(storage: Storage, ext4: Path) -> None:
    upload(storage, b"f", b"")
    append(storage, b"f", b"1\n", key=b"one")
    subprocess.run(["cp", "-a", "f", "backup"], check=True, cwd=ext4)
    append(storage, b"f", b"2\n", key=b"two")
    subprocess.run(["bash", "-ec", "rm f; cp -a backup f"], check=True, cwd=ext4)
    assert read(storage, b"f") == b"1\n"
    append(storage, b"f", b"2\n", key=b"two")
    assert read(storage, b"f") == b"1\n2\n"


@pytest.fixture
def xfs() -> Iterator[Path]:
    """An XFS, on which files can share blocks."""
    if reason := images.why_not("xfs"):
        pytest.skip(reason)
    with images.folder() as place, images.image(place, "xfs") as image:
        root = image.mount_point / "root"
        root.mkdir()
        yield root


LARGE = b"large " * (IN_MEMORY // 3)


def not_shared(*args: object) -> int:
    raise AssertionError("it was copied")


@pytest.mark.parametrize("size", [0, 1, 5000, 3 * PAGE])
def test_a_large_append_shares_the_blocks_of_what_was_staged(
    xfs: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    storage = Storage(str(xfs))
    old = b"o" * size
    upload(storage, b"f", old)
    monkeypatch.setattr(staging, "append_all", not_shared)
    for number in (1, 2):
        made = append(storage, b"f", LARGE, key=b"%d" % number)
        assert append(storage, b"f", LARGE, key=b"%d" % number) == made
        assert tag(storage, b"f") == made.tag
    assert read(storage, b"f") == (xfs / "f").read_bytes() == old + LARGE * 2
    storage.close()


def mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


OTHERS: dict[str, Callable[[Path], object]] = {
    "have it open": lambda path: path.open("ab"),
    "have mapped it": mapped,
    "have made it longer": lambda path: path.write_bytes(b"longer than before"),
    "have changed its last block": lambda path: path.write_bytes(b"NEW"),
}


@pytest.mark.parametrize("others", OTHERS)
def test_a_large_append_is_copied_when_others(
    xfs: Path, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    storage = Storage(str(xfs))
    upload(storage, b"f", b"old")
    begun = storage.begin_append(b"f", anything)
    assert isinstance(begun, Append)
    with closing(begun):
        begun.write([LARGE])
        held = OTHERS[others](xfs / "f")
        before = (xfs / "f").read_bytes()
        monkeypatch.setattr(staging, "share", not_shared)
        begun.commit()
    assert read(storage, b"f") == before + LARGE
    del held
    storage.close()


_DYING = """
import fcntl, os, signal, sys
from httpnas.storage.store import Storage
root, function, nth = sys.argv[1:]
storage = Storage(root)
module = fcntl if function == "ioctl" else os
real, calls = getattr(module, function), 0

def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

pending = storage.begin_append(b"f", lambda present: None, key=b"key")
pending.write([b"large " * 100_000])
pending.sync()
setattr(module, function, dying)
pending.commit()
"""


@pytest.mark.parametrize(
    ("function", "nth", "is_whole"),
    [("ioctl", 1, False), ("fsync", 1, True), ("setxattr", 2, True)],
)
def test_a_large_append_that_shares_blocks_can_be_killed(
    xfs: Path, function: str, nth: int, is_whole: bool
) -> None:
    storage = Storage(str(xfs))
    upload(storage, b"f", b"old ")
    dying = process(_DYING, str(xfs), function, str(nth))
    dying.communicate(timeout=PATIENCE)
    assert dying.returncode == -9
    whole = b"old " + b"large " * 100_000 * is_whole
    assert read(storage, b"f") == whole
    for _ in storage.reclaim_abandoned():
        pass
    assert (xfs / "f").read_bytes() == read(storage, b"f") == whole
    assert leftovers(xfs) == []
    storage.close()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EINVAL, errno.EIO, errno.EOPNOTSUPP])
def test_a_large_append_whose_blocks_cannot_be_shared_is_copied(
    xfs: Path, monkeypatch: pytest.MonkeyPatch, code: int, done: bool
) -> None:
    """Also if a part of it was shared before that failed."""
    storage = Storage(str(xfs))
    upload(storage, b"f", b"old ")
    real = fcntl.ioctl

    def ioctl(fd: int, request: int, packed: bytes) -> None:
        if done:
            source, at, _, to = struct.unpack("=qQQQ", packed)
            real(fd, request, struct.pack("=qQQQ", source, at, 10 * PAGE, to))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    append(storage, b"f", LARGE)
    assert (xfs / "f").read_bytes() == read(storage, b"f") == b"old " + LARGE
    storage.close()
