"""Who owns a file, and who may do what with it, after an upload, an append and a move."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from httpnas.storage import acl
from httpnas.storage.append import Append
from httpnas.storage.errors import NotPermitted, StorageError, StorageFull
from httpnas.storage.store import Storage
from httpnas.storage.version import Find
from tests.private import own
from tests.storage.steps import (
    Faults,
    anything,
    append,
    leftovers,
    need_xattrs,
    outcome,
    read,
    remove,
    upload,
)
from tests.storage.users import User, need_lists, needs_root, plain, shared_with

T = TypeVar("T")

#: A group that others have a folder in, and those who take part.
TEAM = 1234
DAEMON = User(65534, 65534, (TEAM,))
STRANGER = User(65534, 65534)
OWNER = User(2000, 2000, (TEAM,), umask=0o002)
ELSEWHERE = 5678


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def rights(path: Path) -> tuple[int, int, str, bytes | None]:
    """Return all that says who may do what with *path*."""
    status = path.stat()
    names = os.listxattr(path)
    list_ = os.getxattr(path, acl.ACCESS) if acl.ACCESS in names else None
    return status.st_uid, status.st_gid, oct(stat.S_IMODE(status.st_mode)), list_


def with_storage(call: Callable[[Storage], T]) -> Callable[[], T]:
    """Let *call* have the storage whose root is the working folder."""

    def run() -> T:
        storage = Storage(".", durable=False)
        try:
            return call(storage)
        finally:
            storage.close()

    return run


def uploaded(name: bytes, content: bytes = b"new") -> Callable[[], None]:
    def run(storage: Storage) -> None:
        upload(storage, name, content)

    return with_storage(run)


@pytest.fixture
def shared(root: Path) -> Path:
    """A root that a team shares: what is made in it gets the team's group."""
    os.chown(root, 0, TEAM)
    root.chmod(0o2775)
    return root


# What is replaced


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664, 0o666, 0o444, 0o755, 0o000])
def test_a_replace_keeps_the_permission_bits(storage: Storage, root: Path, bits: int) -> None:
    (root / "f").write_bytes(b"old")
    (root / "f").chmod(bits)
    upload(storage, b"f", b"new")
    assert (mode(root / "f"), (root / "f").read_bytes()) == (bits, b"new")


@pytest.mark.parametrize("bits", [0o4755, 0o2755, 0o6711, 0o1644])
def test_bits_that_give_privileges_do_not_pass_to_a_new_content(
    storage: Storage, root: Path, bits: int
) -> None:
    (root / "f").write_bytes(b"old")
    (root / "f").chmod(bits)
    upload(storage, b"f", b"new")
    assert mode(root / "f") == bits & 0o777


@needs_root
def test_a_replace_by_root_keeps_owner_and_group(storage: Storage, root: Path) -> None:
    (root / "f").write_bytes(b"old")
    os.chown(root / "f", 2000, ELSEWHERE)
    (root / "f").chmod(0o640)
    upload(storage, b"f", b"new")
    assert rights(root / "f") == (2000, ELSEWHERE, "0o640", None)


@needs_root
@pytest.mark.parametrize("bits", [0o664, 0o660, 0o640])
def test_a_replace_by_a_member_keeps_the_group(shared: Path, bits: int) -> None:
    (shared / "f").write_bytes(b"old")
    os.chown(shared / "f", 2000, TEAM)
    (shared / "f").chmod(bits)
    DAEMON.does(shared, uploaded(b"f"))
    assert rights(shared / "f") == (DAEMON.uid, TEAM, oct(bits), None)


@needs_root
@pytest.mark.parametrize(
    ("bits", "expected"),
    [(0o664, 0o644), (0o644, 0o644), (0o660, 0o600), (0o640, 0o600), (0o604, 0o600)],
)
def test_where_the_group_cannot_be_kept_nobody_gains(root: Path, bits: int, expected: int) -> None:
    root.chmod(0o777)
    (root / "f").write_bytes(b"old")
    os.chown(root / "f", 2000, ELSEWHERE)
    (root / "f").chmod(bits)
    STRANGER.does(root, uploaded(b"f"))
    assert rights(root / "f") == (STRANGER.uid, STRANGER.gid, oct(expected), None)


def test_a_replace_keeps_the_access_control_list(storage: Storage, root: Path) -> None:
    need_lists(root)
    (root / "f").write_bytes(b"old")
    os.setxattr(root / "f", acl.ACCESS, shared_with(2000, group=4, mask=6, other=0))
    before = rights(root / "f")
    upload(storage, b"f", b"new")
    assert rights(root / "f") == before
    assert before[3] is not None


def test_a_list_that_denies_its_owner_to_write_is_kept(storage: Storage, root: Path) -> None:
    need_lists(root)
    (root / "f").write_bytes(b"old")
    os.setxattr(root / "f", acl.ACCESS, shared_with(2000, owner=4, mask=4))
    before = rights(root / "f")
    upload(storage, b"f", b"new")
    assert rights(root / "f") == before


@needs_root
def test_a_list_whose_group_cannot_be_kept_gives_nobody_more(root: Path) -> None:
    need_lists(root)
    root.chmod(0o777)
    (root / "f").write_bytes(b"old")
    os.chown(root / "f", 2000, ELSEWHERE)
    os.setxattr(root / "f", acl.ACCESS, shared_with(2001, group=6, mask=6, other=4))
    STRANGER.does(root, uploaded(b"f"))
    *_, list_ = rights(root / "f")
    assert list_ == shared_with(2001, group=4, mask=6, other=4)


def test_a_replace_keeps_user_xattrs_but_not_those_of_httpnas(storage: Storage, root: Path) -> None:
    need_xattrs(root)
    upload(storage, b"f", b"old")
    os.setxattr(root / "f", "user.origin", b"somewhere")
    os.setxattr(root / "f", "user.httpnas.of-old", b"?")
    (root / "f").chmod(0o444)
    upload(storage, b"f", b"new")
    found = {name: os.getxattr(root / "f", name) for name in os.listxattr(root / "f")}
    assert found.pop("user.httpnas")
    assert found == {"user.origin": b"somewhere"}


def test_user_xattrs_for_which_there_is_no_room_are_left_out(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_xattrs(root)
    (root / "f").write_bytes(b"old")
    os.setxattr(root / "f", "user.origin", b"somewhere")
    faults = Faults(monkeypatch, "setxattr", 1, errno.ENOSPC)
    upload(storage, b"f", b"new")
    assert faults.failed_on
    assert read(storage, b"f") == b"new"
    assert "user.origin" not in os.listxattr(root / "f")


@needs_root
@pytest.mark.parametrize("list_", [None, shared_with(2001, owner=4, mask=4)])
def test_user_xattrs_of_a_file_that_its_owner_may_not_write_are_kept(
    shared: Path, list_: bytes | None
) -> None:
    need_xattrs(shared)
    need_lists(shared)
    (shared / "f").write_bytes(b"old")
    os.chown(shared / "f", DAEMON.uid, TEAM)
    os.setxattr(shared / "f", "user.origin", b"somewhere")
    (shared / "f").chmod(0o444)
    if list_ is not None:
        os.setxattr(shared / "f", acl.ACCESS, list_)
    before = rights(shared / "f")
    DAEMON.does(shared, uploaded(b"f"))
    assert rights(shared / "f") == before
    assert os.getxattr(shared / "f", "user.origin") == b"somewhere"


# A new file is as if it had been made in its folder


def _plain_folder(folder: Path) -> None:
    folder.chmod(0o755)


def _setgid_folder(folder: Path) -> None:
    os.chown(folder, -1, ELSEWHERE)
    folder.chmod(0o2775)


def _folder_with(list_: bytes) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        os.setxattr(folder, acl.DEFAULT, list_)

    return prepare


FOLDERS: dict[str, Callable[[Path], None]] = {
    "plain": _plain_folder,
    "setgid": _setgid_folder,
    "shared with a user": _folder_with(shared_with(2000)),
    "shared, the mask takes away": _folder_with(shared_with(2000, owner=4, mask=5, group=7)),
    "a list of permission bits": _folder_with(plain(7, 5, 1)),
    "a strict list": _folder_with(plain(4, 0, 0)),
}


@pytest.mark.parametrize("above", FOLDERS)
@pytest.mark.parametrize("here", FOLDERS)
def test_a_new_file_is_as_if_it_had_been_made_in_its_folder(
    root: Path, above: str, here: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give folders to other groups")
    need_lists(root)
    FOLDERS[above](root)
    folder = root / "d"
    folder.mkdir()
    for name in os.listxattr(folder):
        os.removexattr(folder, name)
    folder.chmod(0o755)
    os.chown(folder, -1, 0)
    FOLDERS[here](folder)
    storage = Storage(str(root), durable=False)
    upload(storage, b"d/new", b"content")
    upload(storage, b"d/made/on/the/way", b"content")
    upload(storage, b"d/only", b"content", create_only=True)
    storage.close()
    (folder / "new-by-others").write_bytes(b"content")
    (folder / "made-by-others" / "on" / "the").mkdir(parents=True)
    (folder / "made-by-others" / "on" / "the" / "way").write_bytes(b"content")
    assert rights(folder / "new") == rights(folder / "new-by-others")
    assert rights(folder / "only") == rights(folder / "new-by-others")
    for name in ["", "on", "on/the", "on/the/way"]:
        assert rights(folder / "made" / name) == rights(folder / "made-by-others" / name)


@needs_root
def test_a_member_gives_new_files_to_the_group_of_their_folder(shared: Path) -> None:
    DAEMON.does(shared, uploaded(b"f"))
    DAEMON.does(shared, uploaded(b"d/f"))
    assert rights(shared / "f") == rights(shared / "d" / "f") == (65534, TEAM, "0o644", None)


@needs_root
def test_who_cannot_give_a_new_file_to_the_group_of_its_folder_gives_no_other_more(
    root: Path,
) -> None:
    (root / "d").mkdir()
    os.chown(root / "d", 0, ELSEWHERE)
    root.chmod(0o777)
    (root / "d").chmod(0o2777)
    User(65534, 65534, umask=0o027).does(root, uploaded(b"d/f"))
    assert rights(root / "d" / "f") == (65534, 65534, "0o600", None)


# What others see, and when


def test_nobody_else_reads_what_is_not_published(storage: Storage, root: Path) -> None:
    (root / "f").write_bytes(b"old")
    (root / "f").chmod(0o600)
    for name in [b"f", b"new"]:
        begun = storage.begin_upload(name, anything)
        begun.write([b"secret"])
        [run] = (own(root, "run")).iterdir()
        [temporary] = leftovers(root)
        assert mode(run) & 0o077 == 0
        assert mode(run.parent / temporary) == (0o600 if name == b"f" else 0o644)
        begun.close()


def test_a_large_append_is_staged_for_nobody_else(storage: Storage, root: Path) -> None:
    upload(storage, b"f", b"old")
    begun = storage.begin_append(b"f", anything)
    assert isinstance(begun, Append)
    begun.write([b"x" * (2 << 20)])
    [temporary] = leftovers(root)
    assert mode(own(root, "run") / temporary) == 0o600
    begun.close()


def test_a_group_that_may_remove_what_a_dead_daemon_left_still_may(root: Path) -> None:
    storage = Storage(str(root), durable=False, shared=True)
    [run] = (own(root, "run")).iterdir()
    assert stat.S_IMODE(run.stat().st_mode) == 0o2770
    storage.close()


def test_a_file_has_its_rights_before_it_has_its_name(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_lists(root)
    (root / "f").write_bytes(b"old")
    os.setxattr(root / "f", acl.ACCESS, shared_with(2000, mask=4))
    before = rights(root / "f")
    seen = []
    real = os.rename

    def watched(old: bytes, *args: Any, **kwargs: Any) -> None:
        [temporary] = leftovers(root)
        seen.append(rights(own(root, "run") / temporary))
        real(old, *args, **kwargs)

    monkeypatch.setattr(os, "rename", watched)
    upload(storage, b"f", b"new")
    assert seen == [before]


def late(change: Callable[[], Any]) -> Callable[[Find], None]:
    """Return a check that makes *change* when it is asked under the lock."""
    asked = []

    def check(find: Find) -> None:
        asked.append(find)
        if len(asked) == 2:
            change()

    return check


def test_rights_that_others_change_during_the_upload_count(
    durable: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").write_bytes(b"old")
    synced = synced_modes(monkeypatch)
    upload(durable, b"f", b"new", late(lambda: (root / "f").chmod(0o600)))
    assert mode(root / "f") == 0o600
    assert synced == [0o644, 0o600]


def synced_modes(patch: pytest.MonkeyPatch) -> list[int]:
    """Return where the permission bits are noted of each file that is synced from now on."""
    noted = []
    real = os.fsync

    def noting(fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            noted.append(stat.S_IMODE(status.st_mode))
        real(fd)

    patch.setattr(os, "fsync", noting)
    return noted


def test_what_changes_only_the_content_costs_no_second_sync(
    durable: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").write_bytes(b"old")
    synced = synced_modes(monkeypatch)
    upload(durable, b"f", b"new", late(lambda: (root / "f").write_bytes(b"older")))
    assert synced == [0o644]


def test_a_list_that_others_shorten_during_the_upload_is_short_afterwards(
    storage: Storage, root: Path
) -> None:
    need_lists(root)
    (root / "f").write_bytes(b"old")
    os.setxattr(root / "f", acl.ACCESS, shared_with(2000, group=4, mask=4, other=4))
    os.setxattr(root / "f", "user.origin", b"somewhere")

    def change() -> None:
        os.setxattr(root / "f", acl.ACCESS, shared_with(2001, group=4, mask=4, other=4))
        os.removexattr(root / "f", "user.origin")

    upload(storage, b"f", b"new", late(change))
    assert rights(root / "f")[3] == shared_with(2001, group=4, mask=4, other=4)
    assert "user.origin" not in os.listxattr(root / "f")


@needs_root
def test_a_file_that_is_removed_during_the_upload_leaves_no_rights(
    storage: Storage, root: Path
) -> None:
    need_lists(root)
    (root / "f").write_bytes(b"old")
    os.chown(root / "f", 2000, ELSEWHERE)
    os.setxattr(root / "f", acl.ACCESS, shared_with(2000))
    upload(storage, b"f", b"new", late((root / "f").unlink))
    (root / "by others").write_bytes(b"new")
    assert rights(root / "f") == rights(root / "by others")


def test_a_file_that_appears_during_the_upload_is_replaced_with_its_rights(
    storage: Storage, root: Path
) -> None:
    def appear() -> None:
        (root / "f").write_bytes(b"old")
        (root / "f").chmod(0o600)

    upload(storage, b"f", b"new", late(appear))
    assert (mode(root / "f"), read(storage, b"f")) == (0o600, b"new")


# What the system refuses


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EINVAL])
@needs_root
def test_an_owner_that_is_refused_does_not_fail_the_upload(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (root / "f").write_bytes(b"old")
    os.chown(root / "f", 2000, ELSEWHERE)
    (root / "f").chmod(0o640)
    Faults(monkeypatch, "fchown", 1, code, lasting=True)
    upload(storage, b"f", b"new")
    assert rights(root / "f") == (0, 0, "0o600", None)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EINVAL])
def test_without_its_list_a_file_is_for_its_owner_only(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    need_lists(root)
    (root / "f").write_bytes(b"old")
    os.setxattr(root / "f", acl.ACCESS, shared_with(2000, group=0, mask=6, other=4))
    refuse(monkeypatch, "setxattr", acl.ACCESS, code)
    upload(storage, b"f", b"new")
    assert rights(root / "f")[2:] == ("0o700", None)


def refuse(patch: pytest.MonkeyPatch, function: str, name: str, code: int) -> None:
    """Let the file system refuse a *function* of the xattr *name*."""
    real = getattr(os, function)

    def refusing(file: Any, asked: str, *args: Any, **kwargs: Any) -> Any:
        if asked == name:
            raise OSError(code, os.strerror(code))
        return real(file, asked, *args, **kwargs)

    patch.setattr(os, function, refusing)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES])
def test_where_lists_cannot_be_read_a_file_is_for_its_owner_only(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (root / "f").write_bytes(b"old")
    (root / "f").chmod(0o664)
    Faults(monkeypatch, "listxattr", 1, code, lasting=True)
    upload(storage, b"f", b"new")
    assert mode(root / "f") == 0o600


def test_a_file_system_without_lists_has_permission_bits(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").write_bytes(b"old")
    (root / "f").chmod(0o664)
    Faults(monkeypatch, "listxattr", 1, errno.ENOTSUP, lasting=True)
    refuse(monkeypatch, "getxattr", acl.DEFAULT, errno.ENOTSUP)
    upload(storage, b"f", b"new")
    upload(storage, b"g", b"new")
    assert (mode(root / "f"), mode(root / "g")) == (0o664, 0o644)


@needs_root
@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC])
def test_a_quota_of_the_group_counts(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (root / "f").write_bytes(b"old")
    os.chown(root / "f", 0, ELSEWHERE)
    Faults(monkeypatch, "fchown", 1, code)
    with pytest.raises(StorageFull):
        upload(storage, b"f", b"new")
    assert (root / "f").read_bytes() == b"old"
    assert leftovers(root) == []


# Files that we may write but do not own


@pytest.fixture
def log(shared: Path) -> Path:
    """A file of somebody else in the folder of a team, which may write to it."""
    OWNER.does(shared, lambda: Path("log").write_bytes(b"owner-1\nowner-2\n"))
    assert rights(shared / "log") == (OWNER.uid, TEAM, "0o664", None)
    return shared / "log"


def added_by_owner(log: Path, line: bytes) -> None:
    def add() -> None:
        with open(log.name, "ab") as file:
            file.write(line)

    OWNER.does(log.parent, add)


def appended(line: bytes) -> Callable[[], Any]:
    return with_storage(lambda storage: append(storage, b"log", line))


def read_by_daemon(log: Path) -> bytes:
    return DAEMON.does(log.parent, with_storage(lambda storage: read(storage, b"log")))


@needs_root
def test_an_append_to_a_file_of_another_owner_never_hides_or_cuts_what_he_writes(
    log: Path,
) -> None:
    need_xattrs(log.parent)
    expected = log.read_bytes()
    for number in range(3):
        line = b"by httpnas %d\n" % number
        result = outcome(partial(DAEMON.does, log.parent, appended(line)))
        assert not isinstance(result, Exception) or isinstance(result, NotPermitted)
        expected += b"" if isinstance(result, Exception) else line
        assert log.read_bytes() == read_by_daemon(log) == expected
        added_by_owner(log, b"by its owner %d\n" % number)
        expected += b"by its owner %d\n" % number
        assert log.read_bytes() == read_by_daemon(log) == expected
    OWNER.does(log.parent, lambda: Path("log").write_bytes(b"made anew in place"))
    assert read_by_daemon(log) == b"made anew in place"
    assert rights(log) == (OWNER.uid, TEAM, "0o664", None)


@needs_root
def test_an_append_to_a_file_that_may_only_be_read_is_refused(log: Path) -> None:
    log.chmod(0o644)
    with pytest.raises(NotPermitted):
        DAEMON.does(log.parent, appended(b"line\n"))
    added_by_owner(log, b"owner-3\n")
    assert read_by_daemon(log) == b"owner-1\nowner-2\nowner-3\n"


@needs_root
def test_an_upload_over_a_file_of_another_owner_leaves_it_to_the_group(log: Path) -> None:
    DAEMON.does(log.parent, uploaded(b"log", b"new\n"))
    assert rights(log) == (DAEMON.uid, TEAM, "0o664", None)
    added_by_owner(log, b"owner-3\n")
    assert read_by_daemon(log) == b"new\nowner-3\n"


@needs_root
@pytest.mark.parametrize("bits", [0o664, 0o600])
def test_a_file_of_another_owner_is_moved_as_it_is(log: Path, bits: int) -> None:
    log.chmod(bits)
    (log.parent / "g").write_bytes(b"replaced")

    def move(storage: Storage) -> None:
        storage.move(b"log", b"d/log", anything)
        storage.move(b"d/log", b"g", anything)

    DAEMON.does(log.parent, with_storage(move))
    assert rights(log.parent / "g") == (OWNER.uid, TEAM, oct(bits), None)
    assert (log.parent / "g").read_bytes() == b"owner-1\nowner-2\n"


@needs_root
@pytest.mark.parametrize("bits", [0o664, 0o600])
def test_a_file_of_another_owner_is_removed_as_its_folder_permits(log: Path, bits: int) -> None:
    log.chmod(bits)
    DAEMON.does(log.parent, with_storage(lambda storage: remove(storage, b"log")))
    assert not log.exists()


@needs_root
def test_a_file_of_another_owner_in_a_sticky_folder_stays(log: Path) -> None:
    log.parent.chmod(0o3775)
    changes: list[Callable[[Storage], Any]] = [
        lambda storage: upload(storage, b"log", b"new"),
        lambda storage: storage.move(b"log", b"g", anything),
        lambda storage: remove(storage, b"log"),
    ]
    for change in changes:
        with pytest.raises(StorageError) as raised:
            DAEMON.does(log.parent, with_storage(change))
        assert isinstance(raised.value, NotPermitted)
    assert log.read_bytes() == b"owner-1\nowner-2\n"
    assert leftovers(log.parent) == []
