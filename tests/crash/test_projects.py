"""Folders with projects of their own, as quotas on folders need them, on a real XFS.

A rename into such a folder fails with EXDEV unless the file belongs to its project.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from httpnas.storage import projects
from httpnas.storage.errors import OtherFileSystem, StorageError
from httpnas.storage.store import Storage
from tests.crash import images
from tests.storage.steps import anything, leftovers, names, read, remove, upload

pytestmark = pytest.mark.crash

_GET, _SET = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=IIIII8s")
_INHERIT = 0x200
ROOT, TEAM, OTHERS = 1, 2, 3


def project(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return int(_FSXATTR.unpack(fcntl.ioctl(fd, _GET, bytes(_FSXATTR.size)))[3])
    finally:
        os.close(fd)


def hand_down(folder: Path, number: int, flag: int = _INHERIT) -> None:
    """Let *folder* belong to the project *number*, and with the *flag* what is made in it too."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        flags, *rest = _FSXATTR.unpack(fcntl.ioctl(fd, _GET, bytes(_FSXATTR.size)))
        rest[2] = number
        fcntl.ioctl(fd, _SET, _FSXATTR.pack(flags | flag, *rest))
    finally:
        os.close(fd)


@pytest.fixture(params=["no project", "project"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A root that has a project of its own or not, with two folders that have."""
    if reason := images.why_not("xfs"):
        pytest.skip(reason)
    with images.folder() as place, images.image(place, "xfs") as image:
        root = image.mount_point / "root"
        for folder in (root, root / "team", root / "others"):
            folder.mkdir()
        if request.param == "project":
            hand_down(root, ROOT)
        hand_down(root / "team", TEAM)
        hand_down(root / "others", OTHERS)
        yield root


@pytest.fixture
def storage(root: Path) -> Iterator[Storage]:
    storage = Storage(str(root))
    yield storage
    storage.close()


def test_a_rename_from_another_project_fails_here(root: Path) -> None:
    (root / "f").touch()
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        (root / "f").rename(root / "team" / "f")


@pytest.mark.parametrize("create_only", [False, True])
def test_a_new_file_belongs_to_the_project_of_its_folder(
    storage: Storage, root: Path, create_only: bool
) -> None:
    upload(storage, b"team/f", b"content", create_only=create_only)
    upload(storage, b"team/on/the/way", b"content", create_only=create_only)
    upload(storage, b"others/f", b"content", create_only=create_only)
    assert read(storage, b"team/f") == b"content"
    assert project(root / "team" / "f") == project(root / "team" / "on/the/way") == TEAM
    assert project(root / "others" / "f") == OTHERS
    assert leftovers(root) == []


def test_a_replace_in_a_project_is_whole_and_keeps_its_rights(storage: Storage, root: Path) -> None:
    (root / "team" / "f").write_bytes(b"old")
    (root / "team" / "f").chmod(0o600)
    upload(storage, b"team/f", b"new")
    status = (root / "team" / "f").stat()
    assert (read(storage, b"team/f"), oct(status.st_mode)) == (b"new", "0o100600")
    assert project(root / "team" / "f") == TEAM


def test_the_project_is_synced_before_the_rename(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def noting(fd: int) -> None:
        synced.append(project(Path(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", noting)
    upload(storage, b"team/f", b"content")
    assert synced == [TEAM, TEAM]  # the file, then its folder


def test_a_folder_may_get_a_project_while_content_comes(storage: Storage, root: Path) -> None:
    (root / "late").mkdir()
    begun = storage.begin_upload(b"late/f", anything)
    begun.write([b"content"])
    hand_down(root / "late", TEAM)
    begun.publish(anything)
    begun.close()
    assert project(root / "late" / "f") == TEAM


def test_a_project_that_is_not_handed_down_is_not_joined(root: Path) -> None:
    outside = root.parent / "outside"
    outside.touch()
    plain = root.parent / "plain"
    plain.mkdir()
    hand_down(plain, TEAM, flag=0)
    folder, fd = os.open(plain, os.O_RDONLY), os.open(outside, os.O_RDWR)
    try:
        assert not projects.join(fd, folder)
        assert project(outside) != TEAM
    finally:
        os.close(folder)
        os.close(fd)


def test_an_upload_that_may_not_join_a_project_leaves_nothing(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.ioctl

    def refusing(fd: int, request: int, *args: Any) -> Any:
        if request == _SET:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, request, *args)

    monkeypatch.setattr(fcntl, "ioctl", refusing)
    for name in [b"team/f", b"team/new/f"]:
        with pytest.raises(OtherFileSystem):
            storage.begin_upload(name, anything)  # before its content comes
    assert names(storage, b"team") == []
    assert leftovers(root) == []


def test_a_folder_with_a_project_is_removed(storage: Storage, root: Path) -> None:
    upload(storage, b"team/a/b/f", b"content")
    remove(storage, b"team/a")
    remove(storage, b"team")
    assert names(storage) == [b"others"]
    assert leftovers(root) == []


def test_a_move_to_another_project_is_refused(storage: Storage, root: Path) -> None:
    upload(storage, b"team/f", b"content")
    with pytest.raises(StorageError) as raised:
        storage.move(b"team/f", b"others/f", anything)
    assert isinstance(raised.value, OtherFileSystem)
    assert read(storage, b"team/f") == b"content"
