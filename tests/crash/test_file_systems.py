"""Appends and versions on file systems that are short of something."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from httpnas.storage.append import Append
from httpnas.storage.store import Storage
from httpnas.storage.version import Version
from tests.crash import images
from tests.storage.steps import anything, append, read, tag, upload

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
