"""Who may enter the daemon's own folder, and what a daemon says that may not."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from httpnas.storage import acl, locks
from httpnas.storage.errors import NotPermitted
from httpnas.storage.store import Storage
from tests.private import own
from tests.storage.steps import anything, append, outcome, read, remove, upload
from tests.storage.users import User, need_lists, needs_root, shared_with

ONE, OTHER = User(2000, 2000, (5000,), umask=0o002), User(3000, 3000, (5000,), umask=0o002)
STRANGER = User(4000, 4000)


@pytest.fixture(autouse=True)
def few_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BUCKETS", 8)


@pytest.fixture
def umask() -> Iterator[None]:
    """Let nothing be kept from others by the umask."""
    before = os.umask(0)
    yield
    os.umask(before)


def bits(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def all_bits(root: Path) -> set[int]:
    """Return the bits of all folders and files of a daemon on *root*."""
    own_folder = root / ".httpnas"
    return {
        bits(path)
        for path in [own_folder, *own_folder.rglob("*")]
        if path.name not in ("locks", "records")  # of format 1, which nobody has to write to
    }


@pytest.mark.usefixtures("umask")
def test_nobody_else_may_enter_the_daemons_own_folder(root: Path) -> None:
    root.chmod(0o777)
    storage = Storage(str(root), durable=False)
    upload(storage, b"f", b"content")
    storage.begin_upload(b"g", anything)
    assert all_bits(root) == {0o700, 0o600, 0o666}  # the last is of the file that will be g
    storage.close()


@pytest.mark.usefixtures("umask")
def test_a_group_may_enter_it_if_told_so(root: Path) -> None:
    storage = Storage(str(root), durable=False, shared=True)
    upload(storage, b"f", b"content")
    assert all_bits(root) == {0o2770, 0o660}
    storage.close()


@pytest.mark.parametrize("shared", [False, True])
def test_what_an_earlier_version_has_made_is_adapted(root: Path, shared: bool) -> None:
    need_lists(root)
    Storage(str(root), durable=False).close()
    everything = [root / ".httpnas", *(root / ".httpnas").rglob("*")]
    for path in everything:
        path.chmod(0o777 if path.is_dir() else 0o666)
        os.setxattr(path, acl.ACCESS, shared_with(1234))
        if path.is_dir():
            os.setxattr(path, acl.DEFAULT, shared_with(1234))
    storage = Storage(str(root), durable=False, shared=shared)
    assert all_bits(root) == ({0o2770, 0o660} if shared else {0o700, 0o600})
    for path in [root / ".httpnas", own(root, "locks"), own(root, "locks") / "000"]:
        assert not {acl.ACCESS, acl.DEFAULT} & set(os.listxattr(path))
    storage.close()


@pytest.mark.parametrize("shared", [False, True])
def test_where_files_have_no_bits_of_their_own_a_storage_is_served(
    root: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "fchown", refuse)
    (root / ".httpnas").mkdir(mode=0o777)
    storage = Storage(str(root), durable=False, shared=shared)
    upload(storage, b"f", b"content")
    assert read(storage, b"f") == b"content"
    storage.close()


@needs_root
def test_what_a_daemon_of_another_user_has_left_is_told_where_it_may_not_be_removed(
    root: Path,
) -> None:
    root.chmod(0o777)

    def reclaim() -> str:
        storage = Storage(".", durable=False)
        said = str(outcome(lambda: list(storage.reclaim_abandoned())))
        storage.close()
        return said

    assert ONE.does(root, reclaim) == "[]"
    other = Storage(str(root), durable=False)
    other.begin_upload(b"f", anything)
    other.workspace.close()
    assert "Permission denied" in ONE.does(root, reclaim)


@needs_root
def test_another_user_can_neither_take_locks_nor_read_temporaries(root: Path) -> None:
    root.chmod(0o777)

    def look() -> list[str]:
        return os.listdir(".httpnas")

    def lock() -> None:
        with open(own(Path("."), "locks") / "000", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    storage = Storage(str(root), durable=False)
    for act in (look, lock):
        with pytest.raises(PermissionError):
            STRANGER.does(root, act)
    storage.close()


@needs_root
def test_a_daemon_of_another_user_is_told_what_to_do(root: Path) -> None:
    root.chmod(0o777)
    ONE.does(root, lambda: Storage(".", durable=False).close())
    with pytest.raises(NotPermitted, match=r"belongs to the user 2000, .* as 3000: .*--shared-by"):
        OTHER.does(root, lambda: Storage(".", durable=False).close())


@needs_root
@pytest.mark.parametrize("bits", [0o2775, 0o775], ids=["setgid", "plain"])
def test_daemons_of_several_users_in_one_group_share_a_storage(root: Path, bits: int) -> None:
    os.chown(root, 0, 5000)
    root.chmod(bits | stat.S_IWGRP)

    def begin() -> None:
        storage = Storage(".", durable=False, shared=True)
        upload(storage, b"one", b"by one ")
        upload(storage, b"d/e/f", b"by one")
        os.chmod("one", 0o666)
        begun = storage.begin_upload(b"left", anything)
        begun.write([b"left behind"])
        os._exit(0)

    def go_on() -> tuple[bytes, list[str]]:
        storage = Storage(".", durable=False, shared=True)
        storage.volume._path = "."  # its parents are not for other users
        storage.volume.probe()
        append(storage, b"one", b"and other")
        upload(storage, b"other", b"by other")
        storage.move(b"one", b"moved", anything)
        if bits & stat.S_ISGID:
            upload(storage, b"d/e/f", b"by other")
            remove(storage, b"d")
        list(storage.reclaim_abandoned())
        content = read(storage, b"moved")
        left = [
            run for run in own(Path("."), "run").iterdir() if run.name != storage.workspace._name
        ]
        storage.close()
        return content, [run.name for run in left]

    with pytest.raises(EOFError):
        ONE.does(root, begin)
    assert OTHER.does(root, go_on) == (b"by one and other", [])
    with pytest.raises(PermissionError):
        STRANGER.does(root, lambda: os.listdir(".httpnas"))


@needs_root
@pytest.mark.parametrize("what", ["locks", "records"])
def test_a_storage_whose_locks_or_records_are_of_another_user_is_found_out_by_a_probe(
    root: Path, what: str
) -> None:
    """As where daemons of several users have run with a narrow umask."""
    Storage(str(root), durable=False).close()
    (root / ".httpnas" / "format").write_text('{"format": 2, "records": "beside"}')
    for folder in [root, root / ".httpnas", *(root / ".httpnas").iterdir()]:
        folder.chmod(0o777 if folder.is_dir() else 0o666)
    for lock in own(root, "locks").iterdir():
        lock.chmod(0o666)

    def probe() -> str:
        storage = Storage(".", durable=False)
        storage.volume._path = "."  # its parents are not for other users
        return str(outcome(storage.volume.probe))

    assert STRANGER.does(root, probe) == "None"
    if what == "locks":
        (own(root, "locks") / "003").chmod(0o644)
    else:
        own(root, "records").chmod(0o755)
    assert "another user" in STRANGER.does(root, probe)
